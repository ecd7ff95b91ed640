// Plays a relay's endless MPEG-TS in headless Chromium: mpegts.js reads it by fetch, and MediaSource shows it. Prints one JSON
// line. Judges nothing: tests/browser/test_relay_page.py does.
// Usage: node relay.mjs STREAM_URL SECONDS
import { chromium } from "playwright-core";
import { createRequire } from "node:module";

const [url, secondsText] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"],
});
try {
  const page = await browser.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  // A page of the box's own: players there are of the same origin.
  await page.goto(new URL("/.well-known/accelerator/health", url).href);
  await page.addScriptTag({ path: createRequire(import.meta.url).resolve("mpegts.js/dist/mpegts.js") });
  await page.evaluate((url) => {
    const video = document.createElement("video");
    video.muted = true;
    document.documentElement.append(video);
    const seen = (window.seen = { errors: [], stalls: 0, info: null });
    video.addEventListener("waiting", () => { if (video.currentTime > 0) seen.stalls += 1; });
    const player = window.mpegts.createPlayer({ type: "mpegts", isLive: true, url }, { enableWorker: false });
    player.on(window.mpegts.Events.ERROR, (...what) => seen.errors.push(what.slice(0, 2).join(" ")));
    player.on(window.mpegts.Events.MEDIA_INFO, (info) => { seen.info = { width: info.width, height: info.height, video: info.videoCodec, audio: info.audioCodec }; });
    player.attachMediaElement(video);
    player.load();
    player.play().catch((error) => seen.errors.push(String(error)));
    window.video = video;
  }, url);
  await page.waitForFunction(() => window.video.currentTime > 0 || window.seen.errors.length, null, { timeout: 30_000 });
  await page.waitForTimeout(Number(secondsText) * 1000);
  const found = await page.evaluate(() => ({ ...window.seen, played: window.video.currentTime,
    frames: window.video.getVideoPlaybackQuality().totalVideoFrames, width: window.video.videoWidth }));
  console.log(JSON.stringify({ ...found, complaints }));
} finally {
  await browser.close();
}
