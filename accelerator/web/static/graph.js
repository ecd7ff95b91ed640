// Ten minutes of two rates as lines in SVG: what viewers get, what the WAN carries. Draws only; knows nothing of the box.
import { make, makeSvg, setText } from "./dom.js";
import { clock, rate } from "./format.js";
import { t } from "./i18n.js";

const SPAN_S = 600;
const WIDTH = 1200;
const BIG = { height: 180, top: 10, bottom: 24 };
const SMALL = { height: 80, top: 10, bottom: 24 };

/** 1, 2 or 5 times a power of ten, at least `value`: what an axis ends with. */
function niceAbove(value) {
  if (!(value > 0)) return 1000;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((each) => each >= value);
}

class Panel {
  constructor(box, series) {
    this.box = box;
    this.series = series;
    this.grid = makeSvg("g", { class: "grid" });
    this.lines = series.map((name) => ({
      name,
      area: makeSvg("path", { class: `area ${name}` }),
      line: makeSvg("path", { class: `line ${name}` }),
    }));
    this.cursor = makeSvg("line", { class: "cursor", y1: box.top, y2: box.height - box.bottom, x1: -9, x2: -9 });
    this.labels = make("div", { class: "axis" });
    this.svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${box.height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      this.grid, ...this.lines.flatMap((each) => [each.area, each.line]), this.cursor);
    this.element = make("div", { class: box === BIG ? "plot big" : "plot small" }, this.svg, this.labels);
  }

  draw(points, endS) {
    const { height, top, bottom } = this.box;
    const highest = Math.max(0, ...points.flatMap((point) => this.series.map((name) => point[name])));
    const limit = niceAbove(highest);
    const x = (atS) => WIDTH * (1 - (endS - atS) / SPAN_S);
    const y = (value) => top + (height - top - bottom) * (1 - value / limit);
    const key = `${limit} ${Math.floor(endS / 60)}`;
    this.grid.replaceChildren();
    for (const share of [0, 0.5, 1]) {
      this.grid.append(makeSvg("line", { x1: 0, x2: WIDTH, y1: y(share * limit), y2: y(share * limit) }));
    }
    if (key !== this.key) {
      // Labels are text of the page, not of the drawing, which is stretched.
      this.key = key;
      this.labels.replaceChildren(...[1, 0.5].map((share) =>
        make("span", { class: share === 1 ? "y top" : "y middle" }, rate(share * limit))));
      for (const minutes of [10, 5, 0]) {
        this.labels.append(make("span", { class: `x ago-${minutes}` },
          minutes ? t("graph.ago", { n: minutes }) : t("graph.now")));
      }
    }
    for (const { name, area, line } of this.lines) {
      const places = points.map((point) => `${x(point.atS).toFixed(1)},${y(point[name]).toFixed(1)}`);
      const path = places.length ? `M${places.join("L")}` : "";
      line.setAttribute("d", path);
      area.setAttribute("d", path && `${path}L${x(points.at(-1).atS).toFixed(1)},${y(0)}L${x(points[0].atS).toFixed(1)},${y(0)}Z`);
    }
  }
}

export class Graph {
  constructor(place) {
    this.points = [];
    this.legend = make("p", { class: "legend", "aria-hidden": "true" });
    this.summary = make("p", { class: "unseen", id: "graph-summary" });
    this.big = new Panel(BIG, ["viewers", "wan"]);
    this.small = new Panel(SMALL, ["wan"]);
    this.title = make("h3", {});
    this.second = make("h4", {});
    this.rows = make("tbody", {});
    this.tableTitle = make("summary", {});
    this.heads = ["graph.time", "tile.viewers", "tile.wan"].map((key) => [key, make("th", { scope: "col" })]);
    this.details = make("details", {}, this.tableTitle,
      make("table", { class: "plain" }, make("thead", {}, make("tr", {}, ...this.heads.map(([, head]) => head))), this.rows));
    this.details.addEventListener("toggle", () => this.fillTable());
    const figure = make("div", { role: "img", "aria-labelledby": "graph-summary", class: "panels" },
      this.big.element, this.second, this.small.element);
    for (const panel of [this.big, this.small]) {
      panel.element.addEventListener("pointermove", (event) => this.point(event, panel));
      panel.element.addEventListener("pointerleave", () => this.point(null, panel));
    }
    place.append(make("div", { class: "graph-head" }, this.title, this.legend), this.summary, figure, this.details);
  }

  /** `points`: [{ atS, viewers, wan }], the oldest first. */
  draw(points) {
    this.points = points;
    if (!points.length) return;
    const endS = points.at(-1).atS;
    const shown = points.filter((point) => point.atS > endS - SPAN_S);
    setText(this.title, t("graph.title"));
    setText(this.second, t("graph.second"));
    setText(this.tableTitle, t("graph.table"));
    for (const [key, head] of this.heads) setText(head, t(key));
    this.big.draw(shown, endS);
    this.small.draw(shown, endS);
    if (!this.pointed) this.readOut(shown.at(-1), true);
    const peak = (name) => rate(Math.max(...shown.map((point) => point[name])));
    // Spoken only when it is asked for, so it may change; but not each second.
    if (!this.summarisedS || endS - this.summarisedS >= 10 || this.spoken !== document.documentElement.lang) {
      this.summarisedS = endS;
      this.spoken = document.documentElement.lang;
      setText(this.summary, t("graph.summary", {
        viewers: rate(shown.at(-1).viewers), wan: rate(shown.at(-1).wan), viewersPeak: peak("viewers"), wanPeak: peak("wan"),
      }));
      if (this.details.open) this.fillTable();
    }
  }

  readOut(point, isNow) {
    const swatch = (name, label, value) => make("span", { class: `key ${name}` }, `${label} `, make("b", {}, value));
    this.legend.replaceChildren(make("span", { class: "when" }, isNow ? t("graph.now") : clock(point.atS)),
      swatch("viewers", t("tile.viewers"), rate(point.viewers)), swatch("wan", t("tile.wan"), rate(point.wan)));
  }

  point(event, panel) {
    this.pointed = event !== null;
    const place = panel.svg.getBoundingClientRect();
    const share = event === null ? -1 : (event.clientX - place.left) / place.width;
    for (const each of [this.big, this.small]) {
      each.cursor.setAttribute("x1", share * WIDTH);
      each.cursor.setAttribute("x2", share * WIDTH);
    }
    if (!this.points.length) return;
    const endS = this.points.at(-1).atS;
    const atS = endS - SPAN_S * (1 - share);
    const near = this.points.reduce((best, each) => (Math.abs(each.atS - atS) < Math.abs(best.atS - atS) ? each : best));
    this.readOut(event === null ? this.points.at(-1) : near, event === null);
  }

  fillTable() {
    const byMinute = new Map();
    for (const point of this.points) byMinute.set(Math.floor(point.atS / 60), [...(byMinute.get(Math.floor(point.atS / 60)) ?? []), point]);
    const mean = (points, name) => points.reduce((sum, each) => sum + each[name], 0) / points.length;
    this.rows.replaceChildren(...[...byMinute].reverse().map(([minute, points]) => make("tr", {},
      make("th", { scope: "row" }, clock(minute * 60)), make("td", {}, rate(mean(points, "viewers"))), make("td", {}, rate(mean(points, "wan"))))));
  }
}
