// Starts the page: asks the box each second, hands the answer to the views, says so when there is none. No view is drawn here.
import { hasToken, read, setToken } from "./api.js";
import { askToken, say } from "./dialogs.js";
import { printable, setText } from "./dom.js";
import { Events } from "./events.js";
import { clock, duration } from "./format.js";
import { loadLanguage, many, otherLanguage, t } from "./i18n.js";
import { Objects } from "./objects.js";
import { Overview } from "./overview.js";
import { Policy } from "./policy.js";

const EVERY_MS = 1000;
// One lost answer is no news; after this the figures on the screen are not those of now.
const STALE_MS = 3500;
const THEMES = ["auto", "light", "dark"];

const byId = (id) => document.getElementById(id);
const views = {};
let live = null;
let answeredMs = performance.now();
let answeredAtS = null;
let movedMs = performance.now();
let needsRecent = true;
let isLocked = false;

// -- what the header says ------------------------------------------------------------------------------------------------

function showHeader() {
  setText(byId("site"), live.site);
  const { policy } = live;
  setText(byId("facts"), t("facts", { uptime: duration(live.uptime_s), number: policy.number ?? "–" }));
  setText(byId("facts-more"), ` · ${t("facts.more", { version: live.version, generation: policy.generation, digest: policy.digest.slice(0, 8) })}`);
  showVerdict(live.level, verdictOf(live));
  document.title = `${live.level === "ok" ? "" : "⚠ "}${live.site} – ${t("title")}`;
}

/** One thing that is wrong is named, several are counted. */
function verdictOf({ level, findings }) {
  const worst = findings.filter((each) => each.level === level);
  if (worst.length === 1 && worst[0].code === "origin-down") return t("verdict.origin-down", { origin: printable(worst[0].subject) });
  return level === "ok" ? t("verdict.ok") : many(`verdict.${level}`, worst.length);
}

function showVerdict(level, text) {
  const verdict = byId("verdict");
  verdict.className = `verdict ${level}`;
  setText(verdict, text);
}

/** Says when the figures are not those of now: the box doesn't answer, or it answers with the same ones. */
function judgeFreshness() {
  const nowMs = performance.now();
  const isSilent = nowMs - answeredMs > STALE_MS;
  const stands = !isSilent && nowMs - movedMs > 2 * STALE_MS;
  document.body.classList.toggle("stale", isSilent || stands);
  const when = answeredAtS === null ? "" : clock(answeredAtS);
  const text = isLocked ? t("stale.locked") : isSilent ? (answeredAtS === null ? t("stale.never") : t("stale.silent", { when })) : stands ? t("stale.stands", { when }) : "";
  setText(byId("stale"), text);
  if (isSilent || stands) {
    showVerdict("bad", t("verdict.unknown"));
    document.title = `⚠ ${live?.site ?? ""} – ${t("verdict.unknown")}`;
  }
}

// -- asking --------------------------------------------------------------------------------------------------------------

async function ask() {
  if (needsRecent) {
    const recent = await read("/api/recent");
    needsRecent = false;
    views.overview.remember(recent);
  }
  const answer = await read("/api/live");
  answeredMs = performance.now();
  if (live === null || answer.number !== live.number) {
    movedMs = answeredMs;
    answeredAtS = answer.at_s;
  }
  live = answer;
  showAll();
  await views.events.follow(live.last_event);
}

function showAll() {
  showHeader();
  views.overview.show(live);
  views.objects.know(live.origins.map((row) => row.name));
  views.policy.know(live.policy);
  if (location.hash === "#policy") views.policy.look(live.policy.generation);
}

async function run() {
  const beganMs = performance.now();
  try {
    if (!document.hidden) await ask();
    isLocked = false;
  } catch (error) {
    if (error.kind === "token-missing" || error.kind === "token-wrong") {
      isLocked = true;
      judgeFreshness();
      await askToken();
      showToken();
    }
  }
  if (!document.hidden) judgeFreshness();
  setTimeout(run, Math.max(200, EVERY_MS - (performance.now() - beganMs)));
}

// A page that nobody looks at asks nothing; when it is looked at again, it reads what it missed.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  needsRecent = true;
  answeredMs = movedMs = performance.now();
});

// -- views, language, theme, token ---------------------------------------------------------------------------------------

function route(event) {
  const name = ["overview", "objects", "events", "policy"].find((each) => `#${each}` === location.hash) ?? "overview";
  if (location.hash === "#main") return;
  for (const link of document.querySelectorAll("[data-view]")) {
    const isHere = link.dataset.view === name;
    byId(`view-${link.dataset.view}`).hidden = !isHere;
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "objects") views.objects.ask({});
  if (name === "policy" && live) views.policy.look(live.policy.generation);
  if (event) scrollTo(0, 0);
}

function chosenTheme() {
  return document.documentElement.dataset.theme ?? "auto";
}

function showControls() {
  const theme = byId("theme-button");
  setText(theme, t(`theme.${chosenTheme()}`));
  theme.setAttribute("aria-label", t("theme.label", { theme: t(`theme.${chosenTheme()}`) }));
  const language = byId("language-button");
  setText(language, t("language.other"));
  language.setAttribute("lang", otherLanguage());
  showToken();
}

function showToken() {
  const button = byId("token-button");
  setText(button, hasToken() ? t("token.forget") : t("token.give"));
  button.classList.toggle("is-open", hasToken());
}

function nextTheme() {
  const next = THEMES[(THEMES.indexOf(chosenTheme()) + 1) % THEMES.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("theme", next);
  } catch {
    // Kept for this page only.
  }
  showControls();
}

async function switchLanguage() {
  await loadLanguage(otherLanguage());
  for (const view of Object.values(views)) view.build();
  showControls();
  if (live) showAll();
}

async function tokenPressed() {
  if (hasToken()) {
    setToken("");
    say(t("token.forgotten"));
  } else if (await askToken()) {
    say(t("token.kept"));
  }
  showToken();
}

await loadLanguage();
Object.assign(views, { overview: new Overview(), objects: new Objects(), events: new Events(), policy: new Policy() });
showControls();
byId("theme-button").addEventListener("click", nextTheme);
byId("language-button").addEventListener("click", switchLanguage);
byId("token-button").addEventListener("click", tokenPressed);
document.addEventListener("token", showToken);
addEventListener("hashchange", route);
route();
run();
