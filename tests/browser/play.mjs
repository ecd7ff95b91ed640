// Opens the demo's page in headless Chromium, lets it play, and prints what `window.demo` says as one JSON line,
// with how many answers came by which protocol. Judges nothing: tests/browser/test_live_channel.py does.
// Usage: node play.mjs PAGE_URL SECONDS SCREENSHOT [PIN [CHROMIUM]]; PIN: the digest of a certificate's key to be trusted.
import { chromium } from "playwright-core";

const [url, secondsText, screenshot, pin = "", executablePath = "/usr/bin/chromium"] = process.argv.slice(2);
const seconds = Number(secondsText);

const browser = await chromium.launch({
  executablePath,
  // Debian's Chromium, as root in a container, and with nobody outside to call.
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
    ...(pin ? [`--ignore-certificate-errors-spki-list=${pin}`] : [])],
});
try {
  const page = await browser.newPage({ viewport: { width: 1000, height: 900 } });
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  const answers = { total: 0, withoutCacheStatus: [], failed: [] };
  page.on("response", (response) => {
    if (!response.url().startsWith("http")) return; // the player's own blob: of its MediaSource
    answers.total += 1;
    if (!response.headers()["cache-status"]) answers.withoutCacheStatus.push(response.url());
    if (response.status() >= 400) answers.failed.push(`${response.status()} ${response.url()}`);
  });
  await page.goto(url);
  const startDeadline = 30_000;
  await page.waitForFunction(() => window.demo?.firstTime !== null || window.demo?.fatal, null, { timeout: startDeadline });
  await page.waitForTimeout(seconds * 1000);
  await page.screenshot({ path: screenshot });
  const demo = await page.evaluate(() => window.demo);
  const hops = await page.evaluate(() => {
    const counts = {};
    for (const entry of [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]) {
      if (entry.name.startsWith("http")) counts[entry.nextHopProtocol] = (counts[entry.nextHopProtocol] ?? 0) + 1;
    }
    return counts;
  });
  const time = await page.evaluate(() => document.querySelector("video").currentTime);
  console.log(JSON.stringify({ ...demo, answers, hops, time, complaints, userAgent: await page.evaluate(() => navigator.userAgent) }));
} finally {
  await browser.close();
}
