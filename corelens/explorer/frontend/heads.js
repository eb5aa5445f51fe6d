// All heads of the model, coloured by a metric.

/** The loss of the answer's probability below which heads count as doing nothing for it. */
const IDLE = 0.05;

/** Every head with its value, highest first; heads without a value last. */
function rankedHeads(ui) {
  const list = ui.about.n_heads.flatMap((count, layer) => Array.from({ length: count }, (_, head) =>
    ({ name: `L${layer}H${head}`, layer, head, value: ui.view.map?.[layer][head] ?? null })));
  const sortKey = ({ value }) => value ?? -Infinity;
  return list.sort((a, b) => sortKey(b) - sortKey(a) || a.layer - b.layer || a.head - b.head);
}

/** The scale of values: from zero up, or around zero if some are negative. `highest` is 0 if all are. */
function scaleOf(ui, list) {
  const values = list.map(({ value }) => value ?? 0);
  const highest = Math.max(...values.map(Math.abs)), low = Math.min(...values) < 0 ? -highest : 0;
  const kind = low < 0 ? "diverging" : "sequential";
  const unit = ui.about.units[ui.view.metric];
  const theme = (name, place) => colour(ui.about.colours.heads[name][kind], place);
  const background = (place) => `light-dark(${theme("light", place)}, ${theme("dark", place)})`;
  return {
    highest, low, kind, background, write: (value) => measured(value, unit),
    place: (value) => (value - low) / (highest - low || 1),
  };
}

/** Marks of a head beside its value. */
function headMarks(ui, name) {
  return {
    shown: ui.state.heads.includes(name), focus: ui.state.heads[0] === name,
    core: ui.about.core.includes(name), ablated: ui.state.ablated.includes(name),
  };
}

function headsSection(ui) {
  const { about } = ui;
  const choose = () => (metric.value === ui.state.metric ? draw() : ui.change({ metric: metric.value }));
  const metric = make("select", {
    "aria-label": "Coloured by", title: "The measure that colours the heads", onchange: choose,
  }, ...Object.entries(about.metrics).map(([value, label]) => make("option", { value }, label)));
  const bar = make("div", { className: "bar" });
  const named = make("input", {
    type: "text", placeholder: "L3H14", size: 8, "aria-label": "Heads to show",
    title: "Type the heads to show, such as L3H14", oninput: () => named.setCustomValidity(""),
  });
  const goTo = make("form", { className: "named", onsubmit(event) {
    event.preventDefault();
    const names = named.value.toUpperCase().split(/[\s,]+/).filter(Boolean);
    const unknown = names.find((name) => !cells.has(name));
    named.setCustomValidity(unknown ? `${unknown} is no head of this model; write layer and head as in L3H14.` : "");
    if (named.reportValidity() && names.length) ui.change({ heads: [...new Set(names)].slice(0, about.most_maps) });
  } }, named, make("button", { type: "submit", title: "Show the heads that are typed here" }, "Go"));
  const notes = make("div", { role: "status" });
  const markEvidence = button("Mark the evidence", () => ui.use("evidence"), {
    title: "Then drag over the part of the picture that holds the answer",
  });
  const grid = make("div", {
    className: "heads", role: "grid", "aria-label": "Attention heads", "aria-multiselectable": "true",
  });
  const legend = make("div", { className: "legend" });
  const readout = make("p", { className: "readout", "aria-live": "polite" });
  const cells = new Map();
  let order = null, active = null;

  /** Lays out the cells anew if their order has changed. */
  function layOut(list) {
    const isRanked = ui.state.order === "score";
    const key = isRanked ? list.map(({ name }) => name).join() : "layer";
    if (key === order) return;
    order = key;
    const widest = Math.max(...about.n_heads);
    const inOrder = isRanked ? list : [...list].sort((a, b) => b.layer - a.layer || a.head - b.head);
    const rows = [];
    inOrder.forEach((head, rank) => {
      const row = isRanked ? Math.floor(rank / widest) : about.n_heads.length - 1 - head.layer;
      (rows[row] ??= []).push(head);
    });
    const focused = headOf(grid.getRootNode().activeElement);
    cells.clear();
    grid.style.setProperty("--heads", widest);
    const step = widest > 24 ? 4 : 1;
    const numbers = Array.from({ length: widest }, (_, head) => span("layer", head % step ? "" : String(head)));
    grid.replaceChildren(...rows.filter((row) => row.length).map((row, index) => {
      const label = isRanked ? `${index * widest + 1}` : `L${row[0].layer}`;
      const title = make("span", { className: "layer", role: "rowheader" }, label);
      return make("div", { className: "row", role: "row" }, title, ...row.map(({ name }) => {
        cells.set(name, make("button", { type: "button", role: "gridcell", tabIndex: -1, "data-head": name }));
        return cells.get(name);
      }));
    }), isRanked ? "" : make("div", { className: "row numbers", "aria-hidden": "true" }, span(""), ...numbers));
    cells.get(focused)?.focus();
  }

  function drawCell({ name, value }, rank, list, scale, wall) {
    const cell = cells.get(name), marks = headMarks(ui, name);
    if (!wall) cell.replaceChildren();
    else {
      if (!cell.firstChild) cell.append(make("canvas"));
      paintThumbnail(ui, cell.firstChild, wall, name);
    }
    cell.style.background = value === null || wall ? "" : scale.background(scale.place(value));
    cell.className = Object.keys(marks).filter((mark) => marks[mark]).join(" ");
    cell.tabIndex = name === active ? 0 : -1;
    cell.setAttribute("aria-selected", String(marks.shown));
    const rankOf = `rank ${rank + 1} of ${list.length}`;
    const facts = { [rankOf]: value !== null, "CoRe head": marks.core, ablated: marks.ablated };
    cell.dataset.readout = [name, scale.write(value), ...Object.keys(facts).filter((fact) => facts[fact])].join(" · ");
    cell.setAttribute("aria-label", cell.dataset.readout);
  }

  function draw() {
    const clicks = {
      show: ["Show", "A click on a head shows its attention"],
      add: ["Add", "A click on a head shows its attention beside the others (Ctrl-click)"],
      ablate: ["Ablate", "A click on a head ablates it (Alt-click)"],
    };
    const cellsShow = {
      values: ["Values", "Every cell has the colour of its value"],
      wall: ["Pictures", "Every cell shows where its head looks, all heads at once"],
    };
    const orders = {
      layer: ["By layer", "Every row is a layer, the last on top"],
      score: ["Highest first", "Heads in the order of their values"],
    };
    const { metric: chosen } = ui.state;
    metric.value = ui.view.state?.metric === chosen ? ui.view.metric ?? chosen : chosen; // what colours the heads
    refill(bar, make("label", {}, "coloured by ", metric),
      choice("Order", orders, ui.state.order, (order) => ui.change({ order })),
      choice("Cells", cellsShow, ui.state.wall ? "wall" : "values", (shown) => ui.change({ wall: shown === "wall" })),
      choice("What a click on a head does", clicks, ui.clicking, (clicking) => { ui.clicking = clicking; ui.draw(); }),
      goTo);
    const list = rankedHeads(ui), scale = scaleOf(ui, list);
    layOut(list);
    active = cells.has(active) ? active : ui.state.heads[0] ?? list[0].name;
    const wall = wallOf(ui);
    grid.classList.toggle("wall", Boolean(wall));
    list.forEach((head, rank) => drawCell(head, rank, list, scale, wall));
    refill(notes, ...currentNotes());
    const ramp = span("ramp");
    ramp.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(scale.background).join()})`;
    const legendOf = ({ low, highest, write }) => (highest ? [number(low), ramp, write(highest)] : ["all heads: 0"]);
    const core = about.core.length ? { core: word("CoRe heads", "CoRe head") } : {};
    const keys = { focus: "shown", ...core, ablated: word("ablation", "ablated") };
    legend.replaceChildren(...(ui.view.map ? legendOf(scale) : []),
      ...Object.entries(keys).map(([mark, label]) => span("key", make("i", { className: mark }), label)));
    legend.title = about.core_name && `CoRe heads: ${about.core_name}`;
    showReadout(active);
  }

  /** Notes on what the colours do not say by themselves. */
  function currentNotes() {
    const { unmarked, hidden, before, without_core: withoutCore } = ui.view;
    const note = (...content) => make("p", { className: "note" }, ...content);
    const isIdle = withoutCore !== null && before && before.probability - withoutCore < IDLE;
    return [
      unmarked ? note(unmarked, " ", ui.prompt?.panels.some(({ grids }) => grids.length) ? markEvidence : "") : null,
      hidden ? note("The evidence is hidden from all heads, so none attends to it; see “Before”.") : null,
      isIdle ? note("The heads with a ring do nothing for this answer: with all of them ablated, ",
        `“${before.text}” has ${percent(withoutCore)} instead of ${percent(before.probability)}.`) : null,
    ];
  }

  const headOf = (element) => element?.closest?.("[data-head]")?.dataset.head;
  const showReadout = (name) => { readout.textContent = cells.get(name)?.dataset.readout ?? ""; };
  grid.addEventListener("click", (event) => {
    const name = headOf(event.target);
    if (!name || ui.model.get("still")) return;
    active = name;
    if (ui.clicking === "ablate" || event.altKey) ui.toggleAblated(name);
    else ui.showHead(name, ui.clicking === "add" || event.ctrlKey || event.metaKey || event.shiftKey);
  });
  for (const name of ["pointerover", "focusin"]) {
    grid.addEventListener(name, (event) => headOf(event.target) && showReadout(headOf(event.target)));
  }
  grid.addEventListener("pointerleave", () => showReadout(active));
  grid.addEventListener("keydown", (event) => {
    const name = headOf(event.target);
    if (!name || ui.model.get("still")) return;
    if (event.key === "a") ui.toggleAblated(name);
    else if (event.key === "+") ui.showHead(name, true);
    else if (event.key in ARROWS) {
      const rows = [...grid.querySelectorAll("[role=row]")].map((row) => [...row.querySelectorAll("button")]);
      const y = rows.findIndex((row) => row.includes(cells.get(name))), x = rows[y].indexOf(cells.get(name));
      const [dx, dy] = ARROWS[event.key];
      const row = rows[y + dy] ?? rows[y];
      const next = row[Math.min(Math.max(x + dx, 0), row.length - 1)];
      cells.get(active).tabIndex = -1; // one cell is in the order of the tab key
      active = headOf(next);
      next.tabIndex = 0;
      next.focus();
    } else return;
    event.preventDefault();
  });
  return { element: make("section", { className: "map" }, bar, notes, grid, legend, readout), draw };
}
