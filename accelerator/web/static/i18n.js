// Texts in the language that was chosen: tables en.json and fr.json, one key for each text. Knows no page but its labels.

const LANGUAGES = ["en", "fr"];
let chosen = "en";
let texts = {};

export const language = () => chosen;
export const otherLanguage = () => LANGUAGES.find((each) => each !== chosen);

/** Load the language that was chosen before, else the one that the page came in. */
export async function loadLanguage(wanted) {
  let kept = null;
  try {
    if (wanted) localStorage.setItem("language", wanted);
    kept = localStorage.getItem("language");
  } catch {
    kept = wanted;
  }
  chosen = LANGUAGES.includes(kept) ? kept : LANGUAGES.includes(document.documentElement.lang) ? document.documentElement.lang : "en";
  texts = await (await fetch(`/static/${chosen}.json`)).json();
  document.documentElement.lang = chosen;
  for (const each of document.querySelectorAll("[data-i18n]")) each.textContent = t(each.dataset.i18n);
  for (const each of document.querySelectorAll("[data-i18n-label]")) each.setAttribute("aria-label", t(each.dataset.i18nLabel));
}

/** The text of `key` with its {holes} filled. */
export function t(key, holes = {}) {
  return (texts[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => (name in holes ? String(holes[name]) : whole));
}

/** The text of a word of the box's own, such as an event's kind; the word itself where there is none yet. */
export const word = (group, name) => texts[`${group}.${name}`] ?? name;

/** What the box said in English, in the chosen language where there is a translation. */
export const said = (english) => texts[`said.${english}`] ?? english;

/** The text of `key` for one or for several. */
export const many = (key, n, holes = {}) => t(n === 1 ? `${key}.one` : key, { n, ...holes });
