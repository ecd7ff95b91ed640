// Stored objects: a page of them at a time, sorted and filtered by the box; purging, with the token.
import { read } from "./api.js";
import { carryOut, confirm, say, tell } from "./dialogs.js";
import { Table, make, nameOf, printable, setText } from "./dom.js";
import { count, duration, size } from "./format.js";
import { many, t } from "./i18n.js";
import { badge } from "./overview.js";

// Of a page: on a small screen a row is a card.
const ROWS = matchMedia("(max-width: 560px)").matches ? 20 : 50;
const STATES = { fresh: "ok", stale: "warn", filling: "info", partial: "info" };
const TYPED_MS = 250;

export class Objects {
  constructor() {
    this.asked = { contains: "", origin: "", sort: "size", offset: 0 };
    this.originNames = [];
    this.build();
  }

  build() {
    const input = make("input", { type: "search", id: "object-text", oninput: (event) => this.typed(event.target.value) });
    input.value = this.asked.contains;
    this.origin = make("select", { id: "object-origin", onchange: (event) => this.ask({ origin: event.target.value, offset: 0 }) });
    this.fillOrigins();
    const sort = make("select", { id: "object-sort", onchange: (event) => this.ask({ sort: event.target.value, offset: 0 }) },
      ...["size", "url", "age", "ttl"].map((each) => make("option", { value: each, selected: each === this.asked.sort }, t(`objects.sort.${each}`))));
    this.total = make("p", { class: "hint", role: "status" });
    this.table = new Table(t("nav.objects"), [
      { label: t("objects.name"), cell: (row) => this.name(row), key: (row) => row.id, class: "what" },
      { label: t("objects.origin"), cell: (row) => nameOf(row.origin, 40), key: (row) => row.origin },
      { label: t("objects.kind"), cell: (row) => printable(row.kind) },
      { label: t("objects.size"), cell: (row) => size(row.size_bytes), class: "number" },
      { label: t("objects.age"), cell: (row) => duration(row.age_s), class: "number" },
      { label: t("objects.ttl"), cell: (row) => duration(row.ttl_s), class: "number" },
      { label: t("objects.state"), cell: (row) => badge(STATES[row.state] ?? "info", t(`state.${row.state}`)), key: (row) => row.state, class: "state" },
    ]);
    this.before = make("button", { type: "button", onclick: () => this.ask({ offset: Math.max(0, this.asked.offset - ROWS) }) }, t("objects.before"));
    this.after = make("button", { type: "button", onclick: () => this.ask({ offset: this.asked.offset + ROWS }) }, t("objects.after"));
    document.getElementById("objects").replaceChildren(
      make("div", { class: "tools" }, make("label", { for: "object-text" }, t("objects.filter")), input,
        make("label", { for: "object-origin" }, t("objects.origin")), this.origin,
        make("label", { for: "object-sort" }, t("objects.sort")), sort,
        make("button", { type: "button", onclick: () => this.ask({}) }, t("objects.reload")),
        make("button", { type: "button", class: "danger", onclick: () => this.purgeMany() }, t("objects.purge-many"))),
      this.total, make("div", { class: "card" }, this.table.element),
      make("div", { class: "buttons pages" }, this.before, this.after));
    if (this.rows) this.fill(this.rows);
  }

  name(row) {
    const url = row.url.replace(/^http:\/\//, "");
    return [make("button", { type: "button", class: "link", onclick: () => this.detail(row) }, nameOf(url, 120))];
  }

  fillOrigins() {
    this.origin.replaceChildren(make("option", { value: "" }, t("objects.origin.all")),
      ...this.originNames.map((name) => make("option", { value: name, selected: name === this.asked.origin }, printable(name))));
  }

  /** The names to choose from, with each answer of /api/live. */
  know(names) {
    const sorted = [...names].sort();
    if (sorted.join("\n") === this.originNames.join("\n")) return;
    this.originNames = sorted;
    this.fillOrigins();
  }

  typed(text) {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.ask({ contains: text, offset: 0 }), TYPED_MS);
  }

  async ask(changed) {
    Object.assign(this.asked, changed);
    const wanted = { ...this.asked };
    const query = new URLSearchParams({ sort: wanted.sort, offset: wanted.offset, limit: ROWS });
    if (wanted.contains) query.set("contains", wanted.contains);
    if (wanted.origin) query.set("origin", wanted.origin);
    try {
      const rows = await read(`/api/objects?${query}`);
      if (JSON.stringify(wanted) === JSON.stringify(this.asked)) this.fill(rows);
    } catch (error) {
      setText(this.total, t("refused", { why: error.message }));
    }
  }

  fill(rows) {
    this.rows = rows;
    this.table.fill(rows.objects);
    const { offset } = this.asked;
    setText(this.total, rows.objects.length
      ? t("objects.total", { first: count(offset + 1), last: count(offset + rows.objects.length), total: count(rows.total) })
      : t("objects.none"));
    this.before.disabled = offset === 0;
    this.after.disabled = offset + rows.objects.length >= rows.total;
  }

  async detail(row) {
    const pairs = [
      [t("objects.name"), nameOf(row.url, 20_000)], [t("objects.origin"), printable(row.origin)], [t("classes.name"), printable(row.class ?? t("classes.none"))],
      [t("objects.kind"), printable(row.kind)], [t("objects.status"), String(row.status)], [t("objects.size"), size(row.size_bytes)],
      [t("objects.age"), duration(row.age_s)], [t("objects.ttl"), duration(row.ttl_s)], [t("objects.state"), t(`state.${row.state}`)],
    ];
    if (row.url.includes("?")) pairs.push(["", t("objects.digest")]);
    const list = make("dl", { class: "pairs", tabindex: "0" }, ...pairs.flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, value)]));
    const pressed = await tell(t("objects.detail"), list, make("button", { type: "submit", value: "purge", class: "danger" }, t("objects.purge")));
    if (pressed !== "purge") return;
    if (!(await confirm(t("purge.title"), t("purge.text"), nameOf(row.url, 2000), t("objects.purge")))) return;
    this.purged(await carryOut("/api/purge", { id: row.id }));
  }

  async purgeMany() {
    const what = make("select", { id: "purge-what" }, ...["prefix", "url", "origin"].map((each) => make("option", { value: each }, t(`purge.${each}`))));
    const which = make("input", { id: "purge-which", required: true, autocomplete: "off", spellcheck: "false", placeholder: "http://…/…" });
    const origin = make("select", { id: "purge-origin", hidden: true }, ...this.originNames.map((name) => make("option", { value: name }, printable(name))));
    what.addEventListener("change", () => {
      const isOrigin = what.value === "origin";
      origin.hidden = !isOrigin;
      which.hidden = isOrigin;
      which.required = !isOrigin;
      label.setAttribute("for", isOrigin ? "purge-origin" : "purge-which");
    });
    const label = make("label", { for: "purge-which" }, t("purge.which"));
    const fields = make("div", { class: "fields" }, make("label", { for: "purge-what" }, t("purge.what")), what, label, which, origin);
    const pressed = await tell(t("objects.purge-many"), fields, make("button", { type: "submit", value: "purge", class: "danger" }, t("objects.purge")));
    if (pressed !== "purge") return;
    const value = what.value === "origin" ? origin.value : which.value.trim();
    if (!(await confirm(t("purge.title"), t("purge.text"), nameOf(`${t(`purge.${what.value}`)}: ${value}`, 2000), t("objects.purge")))) return;
    this.purged(await carryOut("/api/purge", { [what.value]: value }));
  }

  purged(result) {
    if (result === null) return;
    say(many("purge.done", result.purged, { n: count(result.purged) }));
    this.ask({});
  }
}
