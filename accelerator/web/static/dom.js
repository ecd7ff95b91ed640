// Makes and fills elements. Text enters the page here and as text only: names come from origins and viewers.

/** An element with properties (`class`, `data-…`, `aria-…` as attributes; `on…` as listeners) and children. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function makeSvg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  element.append(...children);
  return element;
}

/** Sets text where it differs: live regions speak, and selections stay, only then. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Every character that is not simply seen, escaped: control codes, bidi marks, line separators, odd spaces. */
export function printable(text) {
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);
}

/** A name from strangers: escaped, kept apart from the text around it, shortened in the middle. */
export function nameOf(text, length = 160) {
  const shown = printable(text);
  const cut = shown.length > length ? `${shown.slice(0, length / 2)} … ${shown.slice(-length / 4)}` : shown;
  return make("bdi", { class: "name", dir: "ltr", title: shown.length > length ? null : shown }, cut);
}

/**
 * A table that is filled again and again. `columns`: [{ label, cell(row) → text or element, key(row) (what the cell
 * shows, to leave it alone while that stays), class }]. Roles are spelt out, since on small screens rows are cards.
 */
export class Table {
  constructor(caption, columns) {
    this.columns = columns;
    this.head = make("tr", { role: "row" }, ...columns.map((column) =>
      make("th", { scope: "col", role: "columnheader", class: column.class }, column.label)));
    this.body = make("tbody", { role: "rowgroup" });
    this.element = make("table", { role: "table" }, make("caption", { class: "unseen" }, caption),
      make("thead", { role: "rowgroup" }, this.head), this.body);
  }

  fill(rows) {
    while (this.body.rows.length > rows.length) this.body.lastChild.remove();
    rows.forEach((row, index) => {
      let line = this.body.rows[index];
      if (!line) {
        line = make("tr", { role: "row" }, ...this.columns.map((column, at) =>
          make(at === 0 ? "th" : "td", {
            scope: at === 0 ? "row" : null, role: at === 0 ? "rowheader" : "cell", class: column.class,
            "data-label": column.label,
          })));
        this.body.append(line);
      }
      this.columns.forEach((column, at) => {
        const cell = line.cells[at];
        const key = JSON.stringify(column.key ? column.key(row) : column.cell(row));
        if (cell.dataset.key === key) return;
        cell.dataset.key = key;
        const content = column.cell(row);
        cell.replaceChildren(...(Array.isArray(content) ? content : [content]));
      });
    });
  }
}
