// Chromium with a PAC, as a company's browsers are set up: opens pages by it, and says in a JSON line a page how each came.
// Reads a page's URL from each line of its input. Judges nothing: tests/browser/test_explicit_proxy.py does.
// Usage: node proxied.mjs PAC_URL PIN [CHROMIUM]; PIN: the digest of a certificate's key to be trusted.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [pac, pin, executablePath = "/usr/bin/chromium"] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", `--proxy-pac-url=${pac}`,
    `--ignore-certificate-errors-spki-list=${pin}`, "--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable"],
});
try {
  const page = await browser.newPage();
  for await (const url of createInterface({ input: process.stdin })) {
    const answer = await page.goto(url, { timeout: 30_000 }).catch((error) => String(error));
    console.log(JSON.stringify(typeof answer === "string" ? { fault: answer } : {
      status: answer.status(), fields: answer.headers(), text: await page.evaluate(() => document.body.innerText),
    }));
  }
} finally {
  await browser.close();
}
