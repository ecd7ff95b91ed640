// How values are written, as accelctl writes them; in French with decimal comma and octets. No page, no fetch here.
import { language } from "./i18n.js";

const BINARY = { en: ["B", "KiB", "MiB", "GiB", "TiB", "PiB"], fr: ["o", "Ko", "Mo", "Go", "To", "Po"] };
const DECIMAL = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];

function number(value, digits) {
  return value.toLocaleString(language() === "fr" ? "fr-FR" : "en-US",
    { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function scaled(value, step, units) {
  let unit = 0;
  // Just below the step it would round to "1024.0 KiB".
  while (unit < units.length - 1 && Math.abs(value) >= step - 0.05) {
    value /= step;
    unit += 1;
  }
  return `${number(value, unit === 0 ? 0 : 1)} ${units[unit]}`;
}

export const size = (bytes) => scaled(bytes, 1024, BINARY[language()]);
export const rate = (bps) => scaled(bps, 1000, DECIMAL);
export const count = (n) => number(n, n < 100 && n !== Math.trunc(n) ? 1 : 0);
export const ratio = (share) => (share === null || share === undefined ? "–" : `${number(100 * share, 1)} %`);

/** Two units at most: 3725 → "1 h 02 min". Negative ones keep their sign. */
export function duration(seconds) {
  const sign = seconds < 0 ? "-" : "";
  const rest = Math.abs(seconds);
  if (rest < 10) return `${sign}${number(rest, 1)} s`;
  const whole = Math.round(rest);
  const two = (n) => String(n).padStart(2, "0");
  if (whole < 60) return `${sign}${whole} s`;
  if (whole < 3600) return `${sign}${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${sign}${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${sign}${Math.floor(whole / 86400)} ${language() === "fr" ? "j" : "d"} ${two(Math.floor((whole % 86400) / 3600))} h`;
}

const locale = () => (language() === "fr" ? "fr-FR" : "en-GB");
export const clock = (atS) => new Date(atS * 1000).toLocaleTimeString(locale());

/** The time, with the day where that is not today. */
export function moment(atS) {
  const at = new Date(atS * 1000);
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? at.toLocaleTimeString(locale()) : at.toLocaleString(locale(), { dateStyle: "short", timeStyle: "medium" });
}
