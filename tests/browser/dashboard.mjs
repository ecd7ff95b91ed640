// Walks through the dashboard in headless Chromium as an operator does, and prints what it saw as one JSON line.
// Judges nothing: test_dashboard_page.py does. Usage: node dashboard.mjs SCENARIO URL FOLDER [TOKEN]. Where the box has to be
// changed in between, it prints "next" and waits for a line.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [scenario, url, folder, token] = process.argv.slice(2);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const next = async () => {
  console.log("next");
  await lines.next();
};

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});

const seen = { complaints: [], elsewhere: [], violations: [] };

async function open(width, height, colorScheme, locale, hash = "") {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, locale });
  const page = await context.newPage();
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) seen.complaints.push(message.text()); });
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  page.on("request", (request) => { if (!request.url().startsWith(url)) seen.elsewhere.push(request.url()); });
  await page.exposeFunction("tellViolation", (text) => seen.violations.push(text));
  await page.addInitScript(() => addEventListener("securitypolicyviolation", (event) => window.tellViolation(`${event.violatedDirective} ${event.blockedURI}`)));
  await page.goto(`${url}/${hash}`);
  await page.waitForFunction(() => document.querySelector("#verdict").textContent !== "");
  return page;
}

/** Text whose contrast with what is behind it is below WCAG 2.2's 4.5 (3 where it is large). */
const lowContrasts = (page) => page.evaluate(() => {
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = channels(getComputedStyle(each).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility() || element.closest(".unseen, .skip, noscript, :disabled")) continue;
    const style = getComputedStyle(element);
    const [one, other] = [luminance(channels(style.color)), luminance(behind(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (contrast < (isLarge ? 3 : 4.5)) found.push(`${contrast.toFixed(2)} ${element.className} ${walker.currentNode.textContent.slice(0, 40)}`);
  }
  return found;
});

const textOf = (page, selector) => page.locator(selector).first().innerText();
const rows = (page, place) => page.locator(`${place} tbody tr`).count();

const scenarios = {
  /** Every view in both sizes, themes and languages: a picture each, its width, its contrasts. */
  async looks() {
    seen.looks = {};
    for (const [name, width, height, theme, locale] of [
      ["wide-light-en", 1280, 800, "light", "en-GB"], ["wide-dark-fr", 1280, 800, "dark", "fr-FR"],
      ["narrow-light-fr", 360, 740, "light", "fr-FR"], ["narrow-dark-en", 360, 740, "dark", "en-GB"],
    ]) {
      const page = await open(width, height, theme, locale);
      await page.waitForFunction(() => document.querySelectorAll("#graph path.line.viewers")[0]?.getAttribute("d").length > 20);
      for (const view of ["overview", "objects", "events", "policy"]) {
        await page.click(`[data-view=${view}]`);
        await page.waitForFunction((each) => document.querySelector(`#view-${each}`).innerText.length > 40
          && (each !== "objects" || document.querySelectorAll("#objects tbody tr").length > 0)
          && (each !== "policy" || document.querySelectorAll("#policy .code li").length > 0), view);
        await page.screenshot({ path: `${folder}/dashboard-${name}-${view}.png`, fullPage: view === "overview" || width < 500 });
        seen.looks[`${name}-${view}`] = {
          width: await page.evaluate(() => document.documentElement.scrollWidth),
          contrasts: await lowContrasts(page),
          keys: await page.evaluate(() => document.body.innerText.match(/\b(tile|origins|events|objects|policy|finding|kind|state|nav)\.(?!yaml)[a-z-]+\b(?!\.)/g) ?? []),
        };
      }
      seen.looks[name] = { lang: await page.getAttribute("html", "lang"), text: await textOf(page, "#view-policy h2") };
      await page.context().close();
    }
  },

  /** Figures move while viewers watch; the graph grows; a hostile name stays text. */
  async live() {
    const page = await open(1280, 800, "light", "en-GB");
    await page.waitForFunction(() => !document.querySelector(".tile.viewers .value").textContent.startsWith("0 "));
    const take = () => page.evaluate(() => [document.querySelector(".tile.saved .value").textContent, document.querySelector("#facts").textContent,
      document.querySelector("#graph path.line").getAttribute("d")].join("|"));
    const first = await take();
    await page.waitForFunction((before) => [document.querySelector(".tile.saved .value").textContent, document.querySelector("#facts").textContent,
      document.querySelector("#graph path.line").getAttribute("d")].every((value, at) => value !== before.split("|")[at]), first, { timeout: 15_000 });
    seen.moved = [first, await take()].map((each) => each.split("|")[0]);
    seen.origins = await rows(page, "#origins");
    seen.classes = await rows(page, "#classes");
    await page.click("[data-view=objects]");
    await page.fill("#object-text", "onerror");
    await page.waitForFunction(() => document.querySelectorAll("#objects tbody tr").length === 1);
    seen.hostile = await textOf(page, "#objects tbody .name");
    seen.images = await page.evaluate(() => document.querySelectorAll("main img, main script, main svg[onload]").length);
    await page.fill("#object-text", "");
    await page.waitForFunction(() => document.querySelectorAll("#objects tbody tr").length > 1);
    seen.shownSecret = (await page.content()).includes("hush");
    await page.click("[data-view=overview]");
    // The box goes away, and comes back: never old figures that look like those of now.
    await next();
    await page.waitForFunction(() => document.body.classList.contains("stale"), null, { timeout: 20_000 });
    seen.stale = await textOf(page, "#stale");
    seen.staleVerdict = await textOf(page, "#verdict");
    await page.screenshot({ path: `${folder}/dashboard-stale.png` });
    seen.complaints = seen.complaints.filter((text) => !text.includes("ERR_")); // the browser's own words for it
    await next();
    await page.waitForFunction(() => !document.body.classList.contains("stale") && document.querySelector("#stale").textContent === "", null, { timeout: 20_000 });
    seen.verdict = await textOf(page, "#verdict");
    seen.complaints = seen.complaints.filter((text) => !text.includes("ERR_"));
  },

  /** Nothing but keys: the skip link, the views, a purge with a wrong token and then the right one, and Escape. */
  async keys() {
    const page = await open(1280, 800, "dark", "en-GB");
    const focused = () => page.evaluate(() => {
      const element = document.activeElement;
      return { what: element.id || element.dataset.view || element.textContent.slice(0, 40), outline: getComputedStyle(element).outlineStyle };
    });
    const press = async (key, times = 1) => { for (let n = 0; n < times; n += 1) await page.keyboard.press(key); };
    seen.order = [];
    for (let n = 0; n < 8; n += 1) {
      await press("Tab");
      seen.order.push(await focused());
    }
    await press("Shift+Tab", 2);
    await press("Enter");
    await page.waitForFunction(() => location.hash === "#objects" && document.querySelectorAll("#objects tbody tr").length > 2);
    const tabTo = async (test) => {
      for (let n = 0; n < 120; n += 1) {
        await press("Tab");
        if (await page.evaluate(test)) return;
      }
      throw new Error(`no key leads to ${test}`);
    };
    await tabTo(() => document.activeElement.matches("#objects tbody button.link"));
    seen.object = (await focused()).what;
    await press("Enter");
    await page.waitForSelector("dialog[open]");
    await page.screenshot({ path: `${folder}/dashboard-object.png` });
    await press("Escape");
    await page.waitForFunction(() => !document.querySelector("dialog"));
    seen.backAt = (await focused()).what;
    await press("Enter");
    await tabTo(() => document.activeElement.value === "purge");
    await press("Enter");
    await page.waitForFunction(() => document.querySelector("dialog .subject"));
    await tabTo(() => document.activeElement.value === "yes");
    await page.screenshot({ path: `${folder}/dashboard-confirm.png` });
    await press("Enter");
    await page.waitForSelector("dialog #token");
    seen.tokenFocus = (await focused()).what;
    await page.keyboard.type("not-the-token-at-all");
    await press("Enter");
    await page.waitForFunction(() => (document.querySelector("#token-wrong")?.textContent ?? "") !== "");
    seen.wrong = await textOf(page, "#token-wrong");
    await page.screenshot({ path: `${folder}/dashboard-token.png` });
    await page.keyboard.type(token);
    await press("Enter");
    await page.waitForFunction(() => document.querySelector("#said").textContent !== "");
    seen.purged = await textOf(page, "#said");
    seen.kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie]));
    // Back to the policy before, by keys as well.
    await page.evaluate(() => { location.hash = "#policy"; });
    await page.waitForFunction(() => document.querySelectorAll("#policy tbody tr").length > 1);
    await tabTo(() => document.activeElement.matches("#policy button.danger"));
    await press("Enter");
    await page.waitForFunction(() => document.querySelector("dialog .changes"));
    seen.rollback = await textOf(page, "dialog .changes");
    await page.screenshot({ path: `${folder}/dashboard-rollback.png` });
    await tabTo(() => document.activeElement.value === "yes");
    await press("Enter");
    await page.waitForFunction(() => document.querySelector("#said").textContent.includes("generation"));
    seen.returned = await textOf(page, "#said");
    // Language and theme, and that they are remembered.
    await page.click("#theme-button");
    await page.click("#language-button");
    await page.waitForFunction(() => document.documentElement.lang === "fr");
    await page.reload();
    await page.waitForFunction(() => document.querySelector("#verdict").textContent !== "");
    seen.remembered = await page.evaluate(() => [document.documentElement.lang, document.documentElement.dataset.theme]);
    seen.lockedAgain = await textOf(page, "#token-button");
    seen.complaints = seen.complaints.filter((text) => !text.includes("401")); // the wrong token, in the browser's own words
  },

  /** Where the policy wants the token for reading too. */
  async always() {
    const page = await (await browser.newContext({ locale: "en-GB" })).newPage();
    await page.goto(url);
    await page.waitForSelector("dialog #token");
    seen.before = await textOf(page, "#site");
    await page.keyboard.type(token);
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("#verdict").textContent.includes("fine"));
    seen.after = await textOf(page, "#site");
  },

  /** Without scripts the figures of the moment stand in the page. */
  async plain() {
    const page = await (await browser.newContext({ javaScriptEnabled: false, locale: "fr-FR" })).newPage();
    await page.goto(url);
    seen.text = await page.locator("body").innerText();
    await page.screenshot({ path: `${folder}/dashboard-plain.png` });
  },
};

try {
  await scenarios[scenario]();
} finally {
  console.log(JSON.stringify(seen));
  await browser.close();
  process.stdin.destroy();
}
