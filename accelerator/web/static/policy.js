// The policy: what runs, its text with line numbers, what it changed, the history, the way back (with the token).
import { read } from "./api.js";
import { carryOut, confirm, say, tell } from "./dialogs.js";
import { Table, make, nameOf, printable, setText } from "./dom.js";
import { moment } from "./format.js";
import { t } from "./i18n.js";
import { badge } from "./overview.js";

const OUTCOMES = { good: "ok", applied: "info", refused: "warn", withdrawn: "bad" };
const SIGNS = { added: "+", removed: "−", changed: "~", reordered: "↕" };

export class Policy {
  constructor() {
    this.generation = null;
    this.number = null; // of the text that is shown; null: the running one
    this.build();
  }

  build() {
    this.facts = make("dl", { class: "pairs" });
    this.diff = make("div", {});
    this.textTitle = make("h3", {});
    this.text = make("div", {});
    this.table = new Table(t("policy.history"), [
      { label: t("policy.number"), cell: (row) => (row.running ? make("b", {}, t("policy.runs", { n: row.number })) : String(row.number)), key: (row) => [row.number, row.running] },
      { label: t("policy.when"), cell: (row) => moment(row.at_s), class: "when" },
      { label: t("policy.by"), cell: (row) => t(`by.${row.by}`) + (row.restores ? ` (${row.restores})` : "") },
      { label: t("policy.outcome"), cell: (row) => badge(OUTCOMES[row.outcome] ?? "info", t(`outcome.${row.outcome}`)), key: (row) => row.outcome, class: "state" },
      { label: t("policy.digest"), cell: (row) => make("code", {}, row.digest.slice(0, 12) || "–"), key: (row) => row.digest },
      { label: t("policy.reason"), cell: (row) => (row.reason ? nameOf(row.reason, 200) : "–"), key: (row) => row.reason, class: "what" },
      { label: t("policy.actions"), cell: (row) => this.actions(row), key: (row) => [row.number, row.running, row.outcome], class: "actions" },
    ]);
    document.getElementById("policy").replaceChildren(
      make("div", { class: "pair" },
        make("div", { class: "card" }, make("h3", {}, t("policy.running")), this.facts),
        make("div", { class: "card" }, make("h3", {}, t("policy.changed")), this.diff)),
      make("div", { class: "card" }, make("h3", {}, t("policy.history")), this.table.element),
      make("div", { class: "card", id: "policy-text" }, this.textTitle, this.text));
    if (this.shown) this.show();
  }

  actions(row) {
    const name = String(row.number);
    const buttons = [make("button", { type: "button", "aria-label": t("policy.view-label", { n: name }), onclick: () => this.view(row.number) }, t("policy.view"))];
    if (row.outcome !== "refused") {
      buttons.push(make("button", { type: "button", "aria-label": t("policy.diff-label", { n: name }), onclick: () => this.showDiff(row.number) }, t("policy.diff")));
    }
    if (!row.running && row.outcome !== "refused") {
      buttons.push(make("button", { type: "button", class: "danger", "aria-label": t("policy.return-label", { n: name }), onclick: () => this.rollback(row) }, t("policy.return")));
    }
    return buttons;
  }

  /** Reads what is shown again where another policy runs, or this is the first look. */
  async look(generation) {
    if (generation === this.generation) return;
    this.generation = generation;
    try {
      const [history, text] = await Promise.all([read("/api/policy/history"), read("/api/policy")]);
      const diff = await read("/api/policy/diff").catch((error) => ({ trouble: error }));
      this.shown = { history, text, diff };
      this.show();
    } catch (error) {
      this.generation = null;
      say(t("refused", { why: error.message }), true);
    }
  }

  know(policy) {
    this.state = policy;
  }

  show() {
    const { history, text, diff } = this.shown;
    const pairs = [
      [t("policy.number"), String(text.number)], [t("policy.generation"), String(this.state?.generation ?? "–")],
      [t("policy.digest"), make("code", { class: "wrap" }, text.digest)], [t("policy.path"), nameOf(text.path, 200)],
      [t("policy.when"), moment(text.at_s)], [t("policy.outcome"), badge(OUTCOMES[text.outcome] ?? "info", t(`outcome.${text.outcome}`))],
    ];
    this.facts.replaceChildren(...pairs.flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, value)]));
    this.diff.replaceChildren(diff.trouble ? make("p", { class: "hint" }, diff.trouble.kind === "no-older-policy" ? t("policy.first") : diff.trouble.message) : diffOf(diff));
    this.table.fill(history.entries);
    this.showText(text);
  }

  showText(entry) {
    setText(this.textTitle, t("policy.text", { n: entry.number }));
    this.text.replaceChildren(...entry.files.flatMap(({ name, text }) => [
      make("h4", {}, nameOf(name, 200)),
      make("div", { class: "code", tabindex: "0", role: "region", "aria-label": printable(name) },
        make("ol", {}, ...text.replace(/\n$/, "").split("\n").map((line) => make("li", {}, make("code", {}, printable(line) || " "))))),
    ]));
  }

  async view(number) {
    try {
      this.showText(await read(`/api/policy?number=${number}`));
      const place = document.getElementById("policy-text");
      place.setAttribute("tabindex", "-1");
      place.focus();
    } catch (error) {
      say(t("refused", { why: error.message }), true);
    }
  }

  async showDiff(number) {
    try {
      const diff = await read(`/api/policy/diff?number=${number}`);
      await tell(t("policy.diff-title", { from: diff.from, to: diff.to }), diffOf(diff));
    } catch (error) {
      say(error.kind === "no-older-policy" ? t("policy.first") : t("refused", { why: error.message }), true);
    }
  }

  async rollback(row) {
    let found;
    try {
      found = await read(`/api/policy/diff?number=${row.number}&to=${this.shown.history.running}`);
    } catch (error) {
      say(t("refused", { why: error.message }), true);
      return;
    }
    if (!(await confirm(t("policy.return-title", { n: row.number }), t("policy.return-text"), diffOf(found), t("policy.return")))) return;
    const result = await carryOut("/api/policy/rollback", { to: row.number });
    if (result !== null) say(t("policy.returned", { n: result.number, generation: result.generation }));
  }
}

/** What changes, a line a key, and then what that means for viewers. */
function diffOf(diff) {
  if (!diff.changes.length) return make("p", { class: "hint" }, t("policy.nothing"));
  const value = (each) => printable(typeof each === "string" ? each : JSON.stringify(each));
  const lines = diff.changes.map((each) => {
    const text = each.kind === "added" ? value(each.new) : each.kind === "removed" ? value(each.old) : `${value(each.old)} → ${value(each.new)}`;
    return make("li", { class: `change ${each.kind}` }, make("span", { class: "sign", "aria-hidden": "true" }, SIGNS[each.kind]),
      make("span", { class: "unseen" }, t(`change.${each.kind}`)), make("code", {}, `${printable(each.key)}: ${text}`));
  });
  const effects = diff.effects.map((each) => make("li", { lang: "en" }, printable(each.text)));
  return make("div", {}, make("ul", { class: "changes" }, ...lines),
    effects.length ? make("h4", {}, t("policy.effects")) : null, effects.length ? make("ul", { class: "effects" }, ...effects) : null);
}
