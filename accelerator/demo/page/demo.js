// Plays the live channel and shows how it goes. `window.demo` is what tests/browser reads; nothing here talks to anyone but this server.
"use strict";

const demo = {
  variant: new URLSearchParams(location.search).get("variant") === "ts" ? "ts" : "cmaf",
  firstTime: null, // media time at which playing began, in seconds
  playedSeconds: 0,
  stalls: 0,
  fatal: null,
  errors: [],
  segments: 0,
  hits: 0, // segments whose Cache-Status says hit
  receivedBytes: 0,
  cacheStatus: null,
  level: null,
  latencySeconds: null,
  bufferedSeconds: 0,
};
window.demo = demo;

const video = document.getElementById("video");
const show = (id, text) => { document.getElementById(id).textContent = text; };
show("from", location.host);

function fail(text) {
  demo.fatal = text;
  const line = document.getElementById("error");
  line.hidden = false;
  line.textContent = text;
}

video.addEventListener("playing", () => { demo.firstTime ??= video.currentTime; });
video.addEventListener("waiting", () => { if (demo.firstTime !== null) demo.stalls += 1; });

function measure() {
  if (demo.firstTime !== null) demo.playedSeconds = video.currentTime - demo.firstTime;
  demo.bufferedSeconds = 0;
  for (let i = 0; i < video.buffered.length; i += 1) {
    if (video.buffered.start(i) <= video.currentTime && video.currentTime <= video.buffered.end(i)) {
      demo.bufferedSeconds = video.buffered.end(i) - video.currentTime;
    }
  }
  show("played", `${demo.playedSeconds.toFixed(0)} s`);
  show("stalls", demo.stalls);
  show("level", demo.level ?? "");
  show("latency", demo.latencySeconds === null ? "" : `${demo.latencySeconds.toFixed(1)} s`);
  show("buffered", `${demo.bufferedSeconds.toFixed(1)} s`);
  show("received", `${(demo.receivedBytes / 1e6).toFixed(1)} MB`);
  show("hits", `${demo.hits} of ${demo.segments}`);
  show("status", demo.cacheStatus ?? "none: no cache in between");
}
setInterval(measure, 250);

if (!Hls.isSupported()) {
  fail("This browser has no Media Source Extensions.");
} else {
  const hls = new Hls();
  hls.on(Hls.Events.ERROR, (_, data) => {
    demo.errors.push(data.details);
    if (data.fatal) fail(`hls.js: ${data.type}, ${data.details}`);
  });
  hls.on(Hls.Events.FRAG_LOADED, (_, data) => {
    demo.segments += 1;
    demo.receivedBytes += data.frag.stats.total;
    demo.cacheStatus = data.networkDetails?.getResponseHeader("Cache-Status") ?? null;
    if (/;\s*hit\b/.test(demo.cacheStatus ?? "")) demo.hits += 1;
    demo.latencySeconds = hls.latency;
  });
  hls.on(Hls.Events.LEVEL_SWITCHED, (_, data) => {
    const level = hls.levels[data.level];
    demo.level = `${level.width}×${level.height}, ${(level.bitrate / 1000).toFixed(0)} kbit/s`;
  });
  hls.loadSource(`live/${demo.variant}/master.m3u8`);
  hls.attachMedia(video);
  video.play().catch((error) => { if (error.name !== "AbortError") fail(`play: ${error.message}`); });
}
