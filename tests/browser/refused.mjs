// Chromium on a page, and what the page may fetch. Each line of the input is a JSON list: the page's URL, the URL to be
// fetched, and a permission to be given first ("" for none); each line of the output says what came: a status, or why not.
// Judges nothing: tests/browser/test_what_browsers_refuse.py does.
// Usage: node refused.mjs PIN [CHROMIUM]; PIN: the digest of a certificate's key to be trusted.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [pin, executablePath = "/usr/bin/chromium"] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", `--ignore-certificate-errors-spki-list=${pin}`],
});
try {
  for await (const line of createInterface({ input: process.stdin })) {
    const [from, url, permission] = JSON.parse(line);
    const context = await browser.newContext();
    if (permission) await context.grantPermissions([permission], { origin: new URL(from).origin });
    const page = await context.newPage();
    const said = [];
    page.on("console", (message) => said.push(message.text()));
    await page.goto(from);
    const status = await page.evaluate((wanted) => Promise.race([
      fetch(wanted).then((answer) => answer.status, (error) => String(error)),
      new Promise((resolve) => { setTimeout(resolve, 5000, "a question that nobody answers"); }),
    ]), url);
    console.log(JSON.stringify({ status, said: said.join("\n") }));
    await context.close();
  }
} finally {
  await browser.close();
}
