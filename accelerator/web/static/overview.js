// The first view: is the video fine, what does the WAN carry, what is wrong. Shows one answer of /api/live at a time.
import { Table, make, nameOf, printable, setText } from "./dom.js";
import { count, duration, moment, rate, ratio, size } from "./format.js";
import { Graph } from "./graph.js";
import { many, said, t, word } from "./i18n.js";

const MARKS = { ok: "✓", info: "i", warn: "!", bad: "✕" };
const SPAN_S = 600;

export const badge = (level, text) => make("span", { class: `badge ${level}` },
  make("span", { class: "mark", "aria-hidden": "true" }, MARKS[level]), text);

export class Overview {
  constructor() {
    this.points = [];
    this.graph = new Graph(document.getElementById("graph"));
    this.tiles = new Map();
    this.build();
  }

  /** Everything that has words in it: again when the language changes. */
  build() {
    const tiles = document.getElementById("tiles");
    tiles.replaceChildren();
    for (const key of ["viewers", "wan", "saved", "hits", "requests", "memory"]) {
      const tile = { value: make("dd", { class: "value" }, "–"), note: make("dd", { class: "note" }, "\u00a0") };
      const bar = key === "memory" ? make("dd", { class: "meter" }, make("progress", { max: "1", value: "0", "aria-label": t("tile.memory") })) : null;
      tile.bar = bar?.firstChild;
      this.tiles.set(key, tile);
      tiles.append(make("div", { class: `tile ${key}` }, make("dt", {}, t(`tile.${key}`)), tile.value, bar, tile.note));
    }
    this.origins = new Table(t("origins.title"), [
      { label: t("origins.name"), cell: (row) => this.originName(row), key: (row) => [row.name, row.class] },
      { label: t("origins.state"), cell: (row) => this.originState(row), key: (row) => [row.level, row.upstreams], class: "state" },
      { label: t("origins.requests"), cell: (row) => count(row.requests_per_s), class: "number" },
      { label: t("origins.hits"), cell: (row) => ratio(row.hit_ratio), class: "number" },
      { label: t("origins.viewers"), cell: (row) => rate(row.to_viewers_bps), class: "number" },
      { label: t("origins.wan"), cell: (row) => rate(row.from_origin_bps), class: "number" },
      { label: t("origins.connections"), cell: (row) => this.connections(row), class: "number" },
      { label: t("origins.errors"), cell: (row) => make("span", { class: row.errors_minute ? "bad-text" : null }, count(row.errors_minute)), key: (row) => row.errors_minute, class: "number" },
      { label: t("origins.stored"), cell: (row) => `${count(row.objects)} · ${size(row.stored_bytes)}`, class: "number" },
    ]);
    document.getElementById("origins").replaceChildren(this.origins.element);
    this.classes = new Table(t("classes.title"), [
      { label: t("classes.name"), cell: (row) => (row.name === null ? t("classes.none") : nameOf(row.name)), key: (row) => row.name },
      { label: t("classes.objects"), cell: (row) => count(row.objects), class: "number" },
      { label: t("classes.stored"), cell: (row) => size(row.stored_bytes), class: "number" },
      { label: t("classes.hits"), cell: (row) => `${count(row.hits)} (${ratio(row.requests ? row.hits / row.requests : null)})`, class: "number" },
      { label: t("classes.viewers"), cell: (row) => size(row.bytes_to_viewers), class: "number" },
    ]);
    document.getElementById("classes").replaceChildren(this.classes.element);
    this.relays = new Table(t("relays.title"), [
      { label: t("relays.name"), cell: (row) => nameOf(row.name, 60), key: (row) => row.name },
      { label: t("relays.state"), cell: (row) => this.relayState(row), key: (row) => [row.state, row.troubles], class: "state" },
      { label: t("relays.in"), cell: (row) => rate(row.bitrate_bps), class: "number" },
      { label: t("relays.lost"), cell: (row) => count(row.lost), class: "number" },
      { label: t("relays.repaired"), cell: (row) => count(row.repaired + row.merged), class: "number" },
      { label: t("relays.breaks"), cell: (row) => count(row.discontinuities), class: "number" },
      { label: t("relays.dropped"), cell: (row) => count(row.dropped + row.send_dropped), class: "number" },
      { label: t("relays.receivers"), cell: (row) => count(row.receivers), class: "number" },
      { label: t("relays.out"), cell: (row) => rate(row.sent_bps), class: "number" },
    ]);
    document.getElementById("relays").replaceChildren(this.relays.element);
    this.shownFindings = null;
  }

  /** What happened before the page was opened: an answer of /api/recent. Smoothed over five samples as the box does. */
  remember(recent) {
    const mean = (list, at) => list.slice(Math.max(0, at - 4), at + 1).reduce((sum, each, _, all) => sum + each / all.length, 0);
    this.points = recent.at_s.map((atS, at) => ({ atS, viewers: mean(recent.to_viewers_bps, at), wan: mean(recent.from_origin_bps, at) }));
    this.graph.draw(this.points);
  }

  show(live) {
    const { counters, now } = live;
    const saved = Math.max(0, counters.bytes_to_viewers - counters.bytes_from_origin);
    const share = now.to_viewers_bps > 0 ? now.from_origin_bps / now.to_viewers_bps : null;
    const tunnels = counters.tunnels ?? 0;
    this.tile("viewers", rate(now.to_viewers_bps), many("tile.viewers.note", counters.connections, { n: count(counters.connections) })
      + (tunnels === 0 ? "" : `, ${many("tile.tunnels", tunnels, { n: count(tunnels) })}`));
    this.tile("wan", rate(now.from_origin_bps), share === null ? t("tile.wan.idle") : t("tile.wan.note", { share: ratio(share) }));
    this.tile("saved", size(saved), t("tile.saved.note", { share: ratio(counters.bytes_to_viewers ? saved / counters.bytes_to_viewers : null) }));
    this.tile("hits", ratio(now.hit_ratio), t("tile.hits.note", {
      collapsed: ratio(now.collapsed_ratio), start: ratio(counters.requests ? counters.hits / counters.requests : null) }));
    this.tile("requests", count(now.requests_per_s), t("tile.requests.note", { refused: count(now.refused_per_s), total: count(counters.refused) }));
    const used = counters.memory_limit_bytes ? counters.memory_bytes / counters.memory_limit_bytes : 0;
    this.tile("memory", size(counters.memory_bytes), t("tile.memory.note", { limit: size(counters.memory_limit_bytes), objects: count(counters.objects) }));
    this.tiles.get("memory").bar.value = used;
    if (!this.points.length || live.at_s - this.points.at(-1).atS > 0.5) {
      this.points.push({ atS: live.at_s, viewers: now.to_viewers_bps, wan: now.from_origin_bps });
      while (this.points[0].atS < live.at_s - SPAN_S - 5) this.points.shift();
    }
    this.graph.draw(this.points);
    this.origins.fill(live.origins);
    setText(document.getElementById("origins-more"), live.n_origins > live.origins.length
      ? t("origins.more", { n: live.origins.length, total: live.n_origins }) : live.n_origins ? "" : t("origins.none"));
    this.classes.fill(live.classes);
    document.getElementById("relays-card").hidden = !live.relays.length;
    this.relays.fill(live.relays);
    this.showFindings(live.findings, live.level);
  }

  tile(name, value, note) {
    const tile = this.tiles.get(name);
    setText(tile.value, value);
    setText(tile.note, note);
  }

  showFindings(findings, level) {
    const key = JSON.stringify([findings, level]);
    if (key === this.shownFindings) return;
    this.shownFindings = key;
    const list = document.getElementById("findings");
    list.replaceChildren(...findings.map((each) => {
      const { subject, values, code } = each;
      const holes = { subject: printable(said(subject)), share: ratio(values.share ?? null), n: count(values.n ?? 0),
        number: values.number ?? "–", connections: count(values.connections ?? 0), upstreams: (values.upstreams ?? []).map(printable).join(", ") };
      const why = values.why ? make("span", { class: "why" }, nameOf(values.why, 400)) : null;
      return make("li", { class: each.level }, make("span", { class: "mark", "aria-hidden": "true" }, MARKS[each.level]),
        make("div", {}, make("b", {}, t(`finding.${code}`, holes)), why, make("span", { class: "advice" }, t(`advice.${code}`, holes))));
    }));
    if (level === "ok") {
      list.prepend(make("li", { class: "ok" }, make("span", { class: "mark", "aria-hidden": "true" }, MARKS.ok),
        make("div", {}, make("b", {}, t("finding.none")), make("span", { class: "advice" }, t("advice.none")))));
    }
  }

  originName(row) {
    return [nameOf(row.name, 60), ...(row.class ? [make("span", { class: "hint block" }, printable(row.class))] : [])];
  }

  originState(row) {
    const troubled = row.upstreams.filter((each) => each.state !== "ok");
    const lines = troubled.map((each) => make("span", { class: "hint block" }, nameOf(each.upstream, 80), " ",
      t(`upstream.${each.state}`, { time: duration(each.trial_in_s) }), each.error ? ": " : "", each.error ? nameOf(each.error, 160) : ""));
    return [badge(row.level, t(`level.origin.${row.level}`)), ...lines];
  }

  relayState(row) {
    const level = { live: "ok", silent: "bad", waiting: "warn", idle: "info" }[row.state];
    return [badge(level, t(`relays.${row.state}`)), ...row.troubles.map((each) => make("span", { class: "hint block", lang: "en" }, nameOf(each, 160)))];
  }

  connections(row) {
    return row.tunnels ? `${count(row.connections)} · ${many("tile.tunnels", row.tunnels, { n: count(row.tunnels) })}` : count(row.connections);
  }
}

/** The few newest events, for the overview. */
export function latestEvents(events, levelOf) {
  if (!events.length) return [make("p", { class: "hint" }, t("events.none"))];
  return [make("ol", { class: "latest" }, ...events.slice(-6).reverse().map((event) => make("li", {},
    badge(levelOf(event.kind), word("kind", event.kind)), make("time", { datetime: new Date(event.at_s * 1000).toISOString() }, moment(event.at_s)),
    make("span", { class: "what", lang: "en" }, nameOf(event.what, 200), event.count > 1 ? ` ×${count(event.count)}` : ""),
    event.advice ? make("span", { class: "advice" }, said(event.advice)) : null)))];
}
