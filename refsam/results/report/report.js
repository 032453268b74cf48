"use strict";

// The table of all results: sorted, filtered, its columns chosen. Rows are made only as they are looked at.
(() => {
  const CHUNK = 100; // rows that are added at a time
  const WAIT = 150; // milliseconds after a key before the table is searched
  const LONG = 40; // characters, beyond which a cell has several lines
  const { columns, anchors } = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("rows");
  const body = table.tBodies[0];
  const count = document.getElementById("count");
  const total = anchors.length;

  let order = Int32Array.from({ length: total }, (_, row) => row); // the rows that pass the filters, sorted
  let made = 0; // of them, how many are in the page
  let sorted = { column: null, direction: 1 };
  const chosen = new Map(); // of a column, the place of the word that its rows must have
  let searched = "";

  const inWords = (value) => value.toLocaleString("en-US");

  function text(column, row) {
    const value = column.values[row];
    if (column.words) return column.words[value];
    if (value === null) return "";
    const digits = { minimumFractionDigits: column.digits, maximumFractionDigits: column.digits };
    return value.toLocaleString("en-US", digits);
  }

  // Numbers that sort as the values do: those themselves, or the places of words in the alphabet.
  const keys = new Map();
  function keysOf(column) {
    if (!keys.has(column)) {
      let found = column.values.map((value) => (value === null ? NaN : value));
      if (column.words) {
        const { compare } = new Intl.Collator("en", { numeric: true });
        const places = column.words.map((_, place) => place);
        places.sort((one, other) => compare(column.words[one], column.words[other]));
        const ranks = [];
        places.forEach((place, rank) => { ranks[place] = column.words[place] === "" ? NaN : rank; });
        found = column.values.map((place) => ranks[place]);
      }
      keys.set(column, found);
    }
    return keys.get(column);
  }

  let haystack = null;
  function matching() {
    const needles = searched.toLowerCase().split(/\s+/).filter(Boolean);
    if (needles.length && haystack === null) {
      haystack = anchors.map((_, row) => columns.map((column) => text(column, row)).join("\n").toLowerCase());
    }
    const found = [];
    for (let row = 0; row < total; row += 1) {
      let fits = needles.every((needle) => haystack[row].includes(needle));
      for (const [column, value] of chosen) fits = fits && String(column.values[row]) === value;
      if (fits) found.push(row);
    }
    return found;
  }

  function update() {
    const found = matching();
    if (sorted.column !== null) {
      const by = keysOf(sorted.column);
      found.sort((one, other) => {
        const first = by[one];
        const second = by[other];
        if (Number.isNaN(first) || Number.isNaN(second)) { // empty cells come last in either direction
          return Number(Number.isNaN(first)) - Number(Number.isNaN(second)) || one - other;
        }
        return (first - second) * sorted.direction || one - other;
      });
    }
    order = found;
    body.replaceChildren();
    made = 0;
    table.setAttribute("aria-rowcount", order.length + 1);
    table.parentElement.scrollTop = 0;
    addRows();
    say();
  }

  function addRows(howMany = CHUNK) {
    const shown = columns.filter((column) => column.shown);
    const fragment = document.createDocumentFragment();
    const end = Math.min(order.length, made + howMany);
    for (; made < end; made += 1) {
      const line = document.createElement("tr");
      line.setAttribute("aria-rowindex", made + 2); // the headings are the first row
      for (const column of shown) {
        const cell = line.insertCell();
        const words = text(column, order[made]);
        if (column.digits !== null) cell.className = "number";
        else if (words.length > LONG) cell.className = "text";
        const anchor = column.name === "status" && anchors[order[made]];
        if (anchor) {
          const link = cell.appendChild(document.createElement("a"));
          link.href = `#${anchor}`;
          link.textContent = words;
        } else {
          cell.textContent = words;
        }
      }
      fragment.append(line);
    }
    body.append(fragment);
    document.getElementById("more").hidden = made >= order.length;
  }

  function say() {
    const rows = order.length === total ? `${inWords(total)} rows` : `${inWords(order.length)} of ${inWords(total)} rows`;
    const by = sorted.column
      ? `, sorted by ${sorted.column.heading}, ${sorted.direction > 0 ? "ascending" : "descending"}`
      : "";
    count.textContent = rows + by;
  }

  function sortBy(column) {
    if (sorted.column !== column) sorted = { column, direction: 1 };
    else if (sorted.direction > 0) sorted = { column, direction: -1 };
    else sorted = { column: null, direction: 1 };
    markSorted();
    update();
  }

  function markSorted() {
    for (const heading of table.tHead.rows[0].cells) {
      heading.removeAttribute("aria-sort");
      if (sorted.column && heading.dataset.name === sorted.column.name) {
        heading.setAttribute("aria-sort", sorted.direction > 0 ? "ascending" : "descending");
      }
    }
  }

  function makeHeadings() {
    const line = document.createElement("tr");
    line.setAttribute("aria-rowindex", 1);
    for (const column of columns.filter((each) => each.shown)) {
      const heading = document.createElement("th");
      heading.scope = "col";
      heading.dataset.name = column.name;
      if (column.digits !== null) heading.className = "number";
      const button = heading.appendChild(document.createElement("button"));
      button.type = "button";
      button.textContent = column.heading;
      button.addEventListener("click", () => sortBy(column));
      line.append(heading);
    }
    table.tHead.replaceChildren(line);
    markSorted();
  }

  function labelled(words, control, className = "") {
    const label = document.createElement("label");
    label.className = className;
    label.append(words, control);
    return label;
  }

  function choiceOf(column) {
    const select = document.createElement("select");
    select.append(new Option("all", ""));
    const by = keysOf(column);
    const rows = new Map(); // one row for each value
    column.values.forEach((value, row) => { if (!Number.isNaN(by[row])) rows.set(String(value), row); });
    const values = [...rows].sort(([, one], [, other]) => by[one] - by[other]);
    for (const [value, row] of values) select.append(new Option(text(column, row), value));
    select.addEventListener("change", () => {
      if (select.value === "") chosen.delete(column);
      else chosen.set(column, select.value);
      update();
    });
    return labelled(column.heading, select);
  }

  function columnChoice() {
    const details = document.createElement("details");
    details.appendChild(document.createElement("summary")).textContent = "Columns";
    const fields = details.appendChild(document.createElement("fieldset"));
    fields.className = "choices";
    const legend = fields.appendChild(document.createElement("legend"));
    legend.className = "unseen";
    legend.textContent = "Columns of the table";
    for (const column of columns) {
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = column.shown;
      box.addEventListener("change", () => {
        column.shown = box.checked;
        makeHeadings();
        update();
      });
      const label = document.createElement("label");
      label.append(box, column.heading);
      fields.append(label);
    }
    return details;
  }

  function action(words, run) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "action";
    button.textContent = words;
    button.addEventListener("click", run);
    return button;
  }

  function makeControls() {
    const form = document.getElementById("filters");
    const search = document.createElement("input");
    search.type = "search";
    let timer = 0;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => { searched = search.value; update(); }, WAIT);
    });
    form.append(labelled("Rows with these words", search, "search"));
    form.append(...columns.filter((column) => column.choices).map(choiceOf));
    form.append(action("Reset filters", () => {
      form.querySelectorAll("select").forEach((select) => { select.value = ""; });
      search.value = "";
      searched = "";
      chosen.clear();
      update();
    }));
    form.append(columnChoice());
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    document.getElementById("more").append(action(`${CHUNK} more rows`, () => addRows()));
  }

  if (total > 0) {
    makeControls();
    makeHeadings();
    update();
    const region = table.parentElement;
    region.addEventListener("scroll", () => {
      const left = region.scrollHeight - region.scrollTop - region.clientHeight;
      if (left < region.clientHeight && made < order.length) addRows();
    }, { passive: true });
  }

  if (navigator.clipboard) {
    for (const block of document.querySelectorAll(".command")) {
      const button = action("Copy", async () => {
        await navigator.clipboard.writeText(block.querySelector("code").textContent);
        button.textContent = "Copied";
      });
      block.append(button);
    }
  }
})();
