// Opens a page through the box in headless Chromium and talks to its chat by WebSocket. Prints a JSON line when all came
// back, and another when the socket was closed. Judges nothing: tests/browser/test_chat_page.py does.
// Usage: node chat.mjs PAGE_URL [CHROMIUM]
import { chromium } from "playwright-core";

const [url, executablePath = "/usr/bin/chromium"] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
try {
  const page = await browser.newPage({ ignoreHTTPSErrors: true });     // a test's own authority
  await page.goto(url);
  console.log(JSON.stringify(await page.evaluate(async () => {
    const chat = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/echo`, ["chat"]);
    chat.binaryType = "arraybuffer";
    window.chatEnd = new Promise((resolve) => chat.addEventListener("close", (event) => resolve(
      { code: event.code, clean: event.wasClean })));
    await new Promise((resolve, reject) => { chat.onopen = resolve; chat.onerror = reject; });
    const echoed = (data) => new Promise((resolve) => { chat.onmessage = (event) => resolve(event.data); chat.send(data); });
    const text = await echoed("réponse ✓");
    const sent = Uint8Array.from({ length: 300000 }, (_, i) => (i * 7) % 251);
    const back = new Uint8Array(await echoed(sent));
    return {
      hop: performance.getEntriesByType("navigation")[0].nextHopProtocol,
      text, extensions: chat.extensions, protocol: chat.protocol,
      same: back.length === sent.length && back.every((byte, i) => byte === sent[i]),
    };
  })));
  console.log(JSON.stringify(await page.evaluate(() => window.chatEnd)));
} finally {
  await browser.close();
}
