// Events as they come: what happened, why, what to do; filtered here. Kept as many as the box keeps.
import { read } from "./api.js";
import { Table, make, nameOf, printable, setText } from "./dom.js";
import { count, moment } from "./format.js";
import { many, said, t, word } from "./i18n.js";
import { badge, latestEvents } from "./overview.js";

const KEPT_MAX = 1000;
const SHOWN_MAX = 200;
const LEVELS = {
  "policy-applied": "info", "policy-rolled-back": "info", "policy-good": "ok", "policy-refused": "warn", "policy-withdrawn": "warn",
  "policy-hurts": "bad", "policy-fallback": "warn", "origin-failing": "bad", "origin-recovered": "ok", "origin-error": "warn",
  "worker-ended": "bad", "memory-refused": "bad", "overload": "bad", "drain": "warn", "history-fault": "warn", "refused": "warn", "log-fault": "warn",
  "certificate-expiry": "warn", "certificate-expired": "bad", "certificate-ocsp": "warn",
};
export const levelOf = (kind) => LEVELS[kind] ?? "info";

export class Events {
  constructor() {
    this.events = [];
    this.last = 0;
    this.isAsking = false;
    this.filter = { text: "", level: "all" };
    this.build();
  }

  build() {
    const change = (name) => (event) => {
      this.filter[name] = event.target.value;
      this.show();
    };
    const text = make("input", { type: "search", id: "event-text", oninput: change("text") });
    text.value = this.filter.text;
    const level = make("select", { id: "event-level", onchange: change("level") },
      ...["all", "warn", "bad"].map((each) => make("option", { value: each, selected: each === this.filter.level }, t(`events.level.${each}`))));
    this.total = make("p", { class: "hint", role: "status" });
    this.table = new Table(t("nav.events"), [
      { label: t("events.when"), cell: (row) => moment(row.at_s), class: "when" },
      { label: t("events.kind"), cell: (row) => badge(levelOf(row.kind), word("kind", row.kind)), key: (row) => row.kind, class: "state" },
      { label: t("events.what"), cell: (row) => this.what(row), key: (row) => [row.number, row.what, row.why], class: "what" },
      { label: t("events.advice"), cell: (row) => (row.advice ? said(row.advice) : []), class: "advice" },
    ]);
    document.getElementById("events").replaceChildren(
      make("div", { class: "tools" }, make("label", { for: "event-text" }, t("events.filter")), text,
        make("label", { for: "event-level" }, t("events.level")), level),
      this.total, make("div", { class: "card" }, this.table.element));
    this.show();
  }

  what(row) {
    const parts = [make("span", { lang: "en", class: "block" }, nameOf(row.what, 300), row.count > 1 ? ` ×${count(row.count)}` : "")];
    if (row.why) parts.push(make("span", { lang: "en", class: "hint block" }, nameOf(row.why, 500)));
    return parts;
  }

  /** `last`: the number of the newest event that the box knows. */
  async follow(last) {
    if (last < this.last) {
      this.events = []; // another process, which counts anew
      this.last = 0;
    }
    if (last === this.last || this.isAsking) return;
    this.isAsking = true;
    try {
      const found = await read(`/api/events?after=${this.last}`);
      this.events = [...this.events, ...found.events].slice(-KEPT_MAX);
      this.last = found.last;
      this.show();
    } finally {
      this.isAsking = false;
    }
  }

  show() {
    const { text, level } = this.filter;
    const levels = { all: ["ok", "info", "warn", "bad"], warn: ["warn", "bad"], bad: ["bad"] }[level];
    const wanted = this.events.filter((event) => levels.includes(levelOf(event.kind))
      && (!text || printable(`${event.kind} ${word("kind", event.kind)} ${event.what} ${event.why} ${event.advice}`).toLowerCase().includes(text.toLowerCase())));
    this.table.fill(wanted.slice(-SHOWN_MAX).reverse());
    setText(this.total, wanted.length ? many("events.total", wanted.length, { n: count(wanted.length) }) : t("events.none"));
    document.getElementById("latest").replaceChildren(...latestEvents(this.events, levelOf));
  }
}
