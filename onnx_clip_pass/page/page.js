"use strict";
// Sorts, searches and unfolds the tables. Without it they show everything, in the order they have.
(() => {
  const FIRST = 200; // rows shown until more are asked for: laying out thousands takes a second
  const MORE = 1000;
  const FEW = 8; // rows that need no search
  const MOST_CHOICES = 40;

  const make = (name, set = {}, ...content) => {
    const made = Object.assign(document.createElement(name), set);
    made.append(...content);
    return made;
  };
  const grouped = (n) => n.toLocaleString("en");
  const collator = new Intl.Collator("en", { numeric: true });

  // What a cell is sorted by where it is not its text; null is unknown.
  const numeric = (text) => {
    const found = Number(text.replace(/,/g, "").replace("inf", "Infinity") || NaN);
    return Number.isNaN(found) ? null : found;
  };
  const elements = (text) => {
    if (text === "scalar") return 1;
    const found = text.split("\u00d7").reduce((all, size) => all * Number(size), 1);
    return Number.isNaN(found) ? null : found;
  };
  const KEYS = { number: numeric, shape: elements };

  const enhance = (frame) => {
    const table = frame.querySelector("table"), body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
    const titles = heads.map((head) => head.textContent);
    const noun = table.dataset.noun;
    const unfolds = heads.some((head) => /l[23]/.test(head.className));
    const keys = new Map(), unfolded = new Map();
    let order = rows, shown = FIRST, sorted = null, texts = null;

    const search = make("input", { type: "search", placeholder: "Search", spellcheck: false });
    search.setAttribute("aria-label", `Search ${noun}s`);
    const told = make("output");
    const more = make("button", { type: "button", className: "moreRows" });
    const tools = make("div", { className: "tools" }, search);
    const picks = [];
    heads.forEach((head, at) => {
      if (head.dataset.kind !== "choice") return;
      const found = [...new Set(rows.map((row) => row.cells[at].textContent))];
      if (found.length < 2 || found.length > MOST_CHOICES) return;
      found.sort(collator.compare);
      const pick = make("select", {}, make("option", { value: "" }, `${titles[at]}: any`));
      pick.setAttribute("aria-label", titles[at]);
      pick.append(...found.map((text, n) => make("option", { value: n + 1 }, text || "none")));
      picks.push({ at, pick, found });
      tools.append(pick);
    });
    tools.append(told);

    const matching = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const wanted = picks.filter(({ pick }) => pick.value);
      if (!words.length && !wanted.length) return order;
      texts ??= new Map(rows.map((row) =>
        [row, [...row.cells].map((cell) => cell.textContent).join("\n").toLowerCase()]));
      return order.filter((row) => words.every((word) => texts.get(row).includes(word))
        && wanted.every(({ at, pick, found }) =>
          row.cells[at].textContent === found[pick.value - 1]));
    };

    // Names may break behind their separators; a button in front unfolds the row.
    const prepare = (row) => {
      for (const cell of row.cells) {
        if (!cell.classList.contains("n")) continue;
        const parts = cell.textContent.split(/(?<=[./_:@])(?=\w)/);
        cell.replaceChildren(...parts.flatMap((part, n) => n ? [make("wbr"), part] : [part]));
      }
      if (!unfolds) return;
      const button = make("button", { type: "button", className: "unfold" });
      button.setAttribute("aria-label", "Details");
      button.setAttribute("aria-expanded", "false");
      row.cells[0].prepend(button);
    };

    const detailsOf = (row) => {
      const list = make("dl", { className: "facts" });
      titles.forEach((title, at) => {
        const cell = row.cells[at];
        if (!cell.textContent) return;
        const isName = cell.classList.contains("n");
        list.append(make("dt", {}, title),
          make("dd", { className: isName ? "n" : "" }, cell.textContent));
      });
      const wide = make("td", { colSpan: heads.length }, list);
      const drawing = row.dataset.drawing
        && document.querySelector(`#drawing-${row.dataset.drawing} .drawing`);
      if (drawing) wide.append(drawing.cloneNode(true));
      return make("tr", { className: "details" }, wide);
    };

    const toggle = (row) => {
      const below = unfolded.get(row);
      if (below) {
        below.remove();
        unfolded.delete(row);
      } else {
        unfolded.set(row, detailsOf(row));
        row.after(unfolded.get(row));
      }
      row.querySelector(".unfold").setAttribute("aria-expanded", String(!below));
    };

    const prepared = new Set();
    const show = (before = 0) => { // the rows before that number are there already
      const found = matching(), visible = found.slice(0, shown);
      for (const row of visible) {
        if (prepared.has(row)) continue;
        prepared.add(row);
        prepare(row);
      }
      if (!before) body.replaceChildren();
      body.append(...visible.slice(before)
        .flatMap((row) => unfolded.has(row) ? [row, unfolded.get(row)] : [row]));
      const all = `${grouped(rows.length)} ${noun}${rows.length === 1 ? "" : "s"}`;
      const matched = found.length < rows.length ? `${grouped(found.length)} of ${all}` : all;
      told.textContent = visible.length < found.length
        ? `${matched}, the first ${grouped(visible.length)} shown` : matched;
      tools.classList.toggle("narrowed", visible.length < rows.length);
      const rest = found.length - visible.length;
      more.hidden = !rest;
      more.textContent = rest > MORE ? `Show ${grouped(MORE)} more` : `Show the other ${rest}`;
    };

    const sort = (at) => {
      const head = heads[at], bySize = head.dataset.kind in KEYS;
      const steps = bySize ? ["descending", "ascending"] : ["ascending", "descending"];
      const next = steps[steps.indexOf(head.getAttribute("aria-sort")) + 1];
      sorted?.removeAttribute("aria-sort");
      sorted = next ? head : null;
      order = rows;
      shown = FIRST;
      if (next) {
        head.setAttribute("aria-sort", next);
        if (!keys.has(at)) {
          const key = KEYS[head.dataset.kind] ?? ((text) => text);
          keys.set(at, new Map(rows.map((row) => [row, key(row.cells[at].textContent)])));
        }
        const key = keys.get(at), sign = next === "ascending" ? 1 : -1;
        order = [...rows].sort((a, b) => {
          const x = key.get(a), y = key.get(b);
          if (x === null || y === null) return (x === null) - (y === null); // unknown comes last
          return sign * (bySize ? (x > y) - (x < y) : collator.compare(x, y));
        });
      }
      show();
    };

    heads.forEach((head, at) => {
      const button = make("button", { type: "button" }, titles[at]);
      button.addEventListener("click", () => sort(at));
      head.replaceChildren(button);
    });
    const again = () => {
      shown = FIRST;
      show();
    };
    search.addEventListener("input", again);
    for (const { pick } of picks) pick.addEventListener("change", again);
    more.addEventListener("click", () => {
      const before = shown;
      shown += MORE;
      show(before);
    });
    if (unfolds) {
      table.classList.add("unfolds");
      body.addEventListener("click", (event) => {
        const row = event.target.closest("tr");
        if (prepared.has(row) && !String(getSelection())) toggle(row);
      });
    }
    if (rows.length > FEW) frame.before(tools);
    frame.after(more);
    show();
  };

  document.documentElement.classList.add("js");
  document.querySelectorAll("div.table").forEach(enhance);
})();
