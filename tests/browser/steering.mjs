// Opens a page with hls.js or dash.js in headless Chromium, which plays from one of several pathways; says so in a JSON line;
// waits for a line (the test has ended that pathway); and says in another how it went on. Judges nothing:
// tests/browser/test_content_steering.py does.
// Usage: node steering.mjs PAGE_URL PATHWAY HOST_RULES [CHROMIUM]; HOST_RULES: Chromium's, for names that no resolver knows.
import { once } from "node:events";
import { chromium } from "playwright-core";

const [url, pathway, rules, executablePath = "/usr/bin/chromium"] = process.argv.slice(2);
const patience = { timeout: 60_000, polling: 50 };

const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
    `--host-resolver-rules=${rules}`],
});
try {
  const page = await browser.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.goto(url);
  // It plays, and the last piece came from the pathway.
  await page.waitForFunction((wanted) => window.seen.fatal || (
    document.querySelector("video").currentTime > 0.5 && window.seen.hosts.at(-1) === wanted), pathway, patience);
  const before = await page.evaluate(() => window.look());
  console.log(JSON.stringify({ ...before, complaints }));
  await once(process.stdin, "data");
  process.stdin.destroy();
  // What had come before the end can't have been all that it plays.
  const end = await page.evaluate(() => window.again());
  await page.waitForFunction((past) => window.seen.fatal || document.querySelector("video").currentTime > past + 1, end, patience);
  console.log(JSON.stringify({ ...await page.evaluate(() => window.look()), complaints }));
} catch (error) {
  console.error(error, JSON.stringify(await browser.contexts()[0]?.pages()[0]?.evaluate(() => window.look?.())));
  process.exitCode = 1;
} finally {
  await browser.close();
}
