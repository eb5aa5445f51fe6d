// The explorer's front end: one module without a build, for notebooks (anywidget), for a page of its own, and for
// pages that were saved.
//
// All there is to say is in a few values that are synchronised with Python: `state` is what the user has chosen, and is
// written here alone; `prompt` and `view` are what Python shows for it. Nothing here computes a number about the model.

const CIVIDIS = [
  "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
].map((hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16)));
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// --- small things ----------------------------------------------------------------------------------------------------

/** An element with properties (`on…` are listeners, `data-…` and `aria-…` attributes) and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const span = (className, ...children) => make("span", { className }, ...children);

function button(label, action, properties = {}) {
  return make("button", { type: "button", onclick: action, ...properties }, label);
}

/** Other children; what had the keyboard keeps it. */
function refill(parent, ...children) {
  const focused = parent.getRootNode().activeElement;
  const at = parent.contains(focused) ? [...parent.querySelectorAll("button, input, select")].indexOf(focused) : -1;
  parent.replaceChildren(...children.filter((child) => child !== null));
  if (at < 0) return;
  const controls = [...parent.querySelectorAll("button, input, select")];
  (controls.find((one) => one.textContent === focused.textContent) ?? controls[at])?.focus();
}

/** Buttons of which one is chosen. */
function choice(name, options, chosen, choose) {
  return make("span", { className: "choice", role: "group", "aria-label": name },
    ...Object.entries(options).map(([value, label]) =>
      button(label, () => choose(value), { "aria-pressed": String(value === chosen), "data-value": value })));
}

/** A colour between 0 and 1: dark blue to yellow, even in lightness, also for eyes that mix red and green. */
function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const [low, high] = [CIVIDIS[Math.floor(at)], CIVIDIS[Math.ceil(at)]];
  return low.map((value, index) => Math.round(value + (high[index] - value) * (at - Math.floor(at))));
}

const css = (rgb, alpha = 1) => `rgba(${rgb.join(",")},${alpha})`;
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const without = (list, item) => list.filter((one) => !same(one, item));

function percent(probability) {
  return probability >= 0.0005 ? `${(100 * probability).toFixed(1)} %` : "< 0.1 %";
}

function number(value) {
  if (value === null) return "no value";
  return Math.abs(value) >= 0.001 || value === 0 ? value.toPrecision(3) : value.toExponential(1);
}

async function copyText(text, by) {
  const label = by.textContent;
  await navigator.clipboard.writeText(text);
  by.textContent = "Copied";
  setTimeout(() => (by.textContent = label), 1500);
}

function save(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function read(file, how) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader[how](file);
  });
}

// --- the whole -------------------------------------------------------------------------------------------------------

function render({ model, el }) {
  const about = model.get("about");
  const ui = {
    model, about,
    tool: "read", // what a click on a picture does
    clicking: "look", // what a click on a head does
    strength: 0.75, // of the overlay
    files: {}, // own pictures, as they were dropped
    images: new Map(), // decoded, by address
    past: [], future: [],
    get state() { return { ...about.first, ...model.get("state") }; },
    get view() { return model.get("view") ?? {}; },
    get prompt() { return model.get("prompt"); },
    get changed() { return ui.state.ablated.length + ui.state.regions.length > 0; },
    change(patch) {
      const next = { ...ui.state, ...patch };
      if (same(next, ui.state)) return;
      ui.past.push(ui.state);
      ui.future = [];
      ui.put(next);
    },
    put(state) {
      const needed = state.pictures.filter((key) => ui.files[key]);
      if (needed.length) model.set("uploads", Object.fromEntries(needed.map((key) => [key, ui.files[key]])));
      model.set("state", state);
      root.setAttribute("aria-busy", "true");
      model.save_changes();
    },
    step(from, to) {
      if (!from.length) return;
      to.push(ui.state);
      ui.put(from.pop());
    },
    say(error) {
      alert.textContent = error;
      alert.hidden = !error;
    },
    toggleAblated(name) {
      const { ablated } = ui.state;
      ui.change({ ablated: ablated.includes(name) ? without(ablated, name) : [...ablated, name] });
    },
    look(name, more) {
      const shown = ui.state.heads;
      if (!more) ui.change({ heads: [name] });
      else if (shown.includes(name)) ui.change({ heads: without(shown, name) });
      else ui.change({ heads: [name, ...shown].slice(0, about.most_maps) });
    },
    draw,
  };
  const parts = [header(ui), gallery(ui), question(ui), pictures(ui), heads(ui), answers(ui), changes(ui), code(ui)];
  const [top, strip, asked, shown, map, said, changed, script] = parts.map((part) => part.element);
  const alert = make("p", { className: "error", role: "alert", hidden: true });
  const root = make("div", { className: "corelens", tabIndex: -1 }, top, alert, strip,
    make("div", { className: "columns" },
      make("div", { className: "column" }, asked, shown),
      make("div", { className: "column" }, map, said, changed)),
    script);
  root.classList.toggle("still", Boolean(model.get("still")));
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // Jupyter's, which would delete the cell on "d d"
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && event.target.tagName !== "INPUT") {
      event.preventDefault();
      if (event.shiftKey) ui.step(ui.future, ui.past);
      else ui.step(ui.past, ui.future);
    }
  });
  acceptDrops(root, ui);
  el.replaceChildren(root);

  function settled() {
    root.setAttribute("aria-busy", "false");
    draw();
  }
  function draw() {
    ui.say(model.get("error"));
    // What is asked and what is shown of it come one after the other.
    ui.current = Boolean(ui.prompt) && ui.view.prompt === ui.prompt.key;
    for (const part of parts) part.draw();
  }
  const listened = { "change:state": draw, "change:view": settled, "change:error": settled };
  for (const [event, listener] of Object.entries(listened)) model.on(event, listener);
  draw();
  return () => {
    for (const [event, listener] of Object.entries(listened)) model.off(event, listener);
  };
}

// --- header: undo, open, save ----------------------------------------------------------------------------------------

function header(ui) {
  const undo = button("Undo", () => ui.step(ui.past, ui.future), { title: "Ctrl+Z" });
  const redo = button("Redo", () => ui.step(ui.future, ui.past), { title: "Ctrl+Shift+Z" });
  const picker = make("input", {
    type: "file", hidden: true, multiple: true, accept: "image/*,.json",
    onchange: () => open(ui, picker.files).finally(() => (picker.value = "")),
  });
  const saved = make("details", { className: "menu" }, make("summary", {}, "Save"), make("div", {},
    button("View (JSON)", () => save("corelens-view.json", savedView(ui), "application/json")),
    button("Figure (PNG)", () => figure(ui).toBlob((blob) => save("corelens.png", blob))),
    button("Page (HTML)", () => save("corelens.html", stillPage(ui), "text/html")),
    button("Code (Python)", () => save("corelens_view.py", ui.view.code ?? "", "text/x-python"))));
  saved.addEventListener("click", (event) => event.target.tagName === "BUTTON" && (saved.open = false));
  saved.addEventListener("focusout", (event) => saved.contains(event.relatedTarget) || (saved.open = false));
  const copy = button("Copy link", () => copyText(location.href, copy));
  ui.pick = () => picker.click();
  const element = make("header", {},
    make("h1", {}, "corelens"), span("quiet", ui.about.model),
    make("span", { className: "tools" }, undo, redo,
      button("Reset", () => ui.change(ui.about.first)), button("Open…", ui.pick), picker,
      ui.model.get("linked") ? copy : null, saved));
  return { element, draw() { undo.disabled = !ui.past.length; redo.disabled = !ui.future.length; } };
}

/** Pictures become what is asked about; a saved view is restored. */
async function open(ui, files) {
  const pictures = [];
  // More than this breaks the connections of notebooks.
  const sizes = [...files].filter((file) => !file.name.endsWith(".json")).map((file) => file.size);
  if (sizes.reduce((sum, size) => sum + size, 0) > ui.about.most_bytes) {
    return ui.say(`At most ${ui.about.most_bytes >> 20} MiB of pictures can be asked about; make them smaller.`);
  }
  for (const file of files) {
    if (file.name.endsWith(".json")) {
      let kept = null;
      try { kept = JSON.parse(await read(file, "readAsText")); } catch { /* said below */ }
      if (!kept?.state) return ui.say(`${file.name} is no saved view.`);
      Object.assign(ui.files, kept.pictures);
      ui.change({ ...ui.about.first, ...kept.state });
      return;
    }
    const key = crypto.getRandomValues(new Uint32Array(4)).join("-");
    ui.files[key] = { name: file.name, data: (await read(file, "readAsDataURL")).split(",")[1] };
    pictures.push(key);
  }
  const asked = ui.prompt?.question ?? ui.state.question ?? "";
  ui.change({ sample: "", pictures, question: asked, evidence: null, regions: [], token: null });
}

function acceptDrops(root, ui) {
  const over = (shown) => (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    root.classList.toggle("dropping", shown);
  };
  root.addEventListener("dragover", over(true));
  root.addEventListener("dragleave", over(false));
  root.addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files.length) open(ui, event.dataTransfer.files);
  });
}

function savedView(ui) {
  const pictures = Object.fromEntries(ui.state.pictures.map((key) => [key, ui.files[key]]).filter(([, file]) => file));
  return JSON.stringify({ state: ui.state, pictures }, null, 1);
}

/** This view as a page that needs neither network nor Python; values can be read in it, and nothing else chosen. */
function stillPage(ui) {
  const about = { ...ui.about, gallery: [] };
  const values = { about, state: ui.state, prompt: ui.prompt, view: ui.view, error: "", still: true };
  const json = JSON.stringify(values).replaceAll("<", "\\u003c");
  const source = ui.model.get("_esm").replaceAll("</script", "<\\/script");
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>corelens</title><style>${ui.model.get("_css")}</style><body class="corelens-page"><div id="explorer"></div>
<script type="module">${source}
const values = ${json};
const model = { get: (name) => values[name], set() {}, save_changes() {}, on() {}, off() {} };
render({ model, el: document.getElementById("explorer") });
</script></html>`;
}

// --- what is asked ---------------------------------------------------------------------------------------------------

function gallery(ui) {
  const choose = (sample) =>
    ui.change({ sample, pictures: [], question: null, evidence: null, regions: [], token: null });
  const items = ui.about.gallery.map(({ id, question, src }) => button(
    src ? make("img", { src, alt: question }) : question, () => choose(id), { title: question, "data-sample": id }));
  const own = button("Your picture", () => ui.pick(), { className: "own" });
  const element = make("nav", { className: "gallery", "aria-label": "Samples" }, ...items, own);
  return {
    element,
    draw() {
      for (const item of [...items, own]) {
        const chosen = item === own ? ui.state.pictures.length > 0 : item.dataset.sample === ui.state.sample;
        item.setAttribute("aria-current", String(chosen));
      }
    },
  };
}

function question(ui) {
  const input = make("input", {
    type: "text", placeholder: "Ask about the picture", "aria-label": "Question", maxLength: 2000,
  });
  const tokens = make("div", { className: "tokens", role: "group", "aria-label": "The token that looks" });
  const form = make("form", {
    onsubmit: (event) => {
      event.preventDefault();
      const sample = ui.about.gallery.find(({ id }) => id === ui.state.sample);
      const asked = sample && input.value === sample.question ? null : input.value;
      ui.change({ question: asked, token: null, evidence: null });
    },
  }, input, make("button", { type: "submit" }, "Ask"));
  let shown = null;

  function draw() {
    const asked = ui.prompt?.question ?? ui.state.question ?? "";
    if (asked !== shown) input.value = shown = asked; // what is being typed stays
    if (!ui.current) return;
    const [focus] = ui.view.maps;
    const last = ui.prompt.tokens.at(-1).position;
    const looking = ui.state.token ?? last;
    refill(tokens, span("quiet", "looks from"), ...ui.prompt.tokens.map((token, index) => {
      const value = focus?.tokens[index] ?? 0;
      const said = focus ? `; ${focus.head} puts ${number(value)} of its attention on it` : "";
      const isLast = token.position === last;
      const what = isLast ? ", which says the first word of the answer" : "";
      return button(token.text.trim() || "␣", () => ui.change({ token: isLast ? null : token.position }), {
        className: token.role === "question" ? "" : "structural",
        "aria-pressed": String(token.position === looking), title: `position ${token.position}${what}${said}`,
        style: `--share:${Math.min(value, 1)}`, "data-position": token.position,
      });
    }));
  }
  return { element: make("section", { className: "asked" }, form, tokens), draw };
}

// --- pictures --------------------------------------------------------------------------------------------------------

const cellsOf = (grid) => (grid.x.length - 1) * (grid.y.length - 1);
const brightest = (map) => (map?.cells ?? []).reduce((most, value) => Math.max(most, value), 1e-9);

/** Where each panel's cells begin among the values of a map. */
function starts(panels) {
  let next = 0;
  return panels.map(({ grids }) => {
    const start = next;
    next += grids.reduce((sum, grid) => sum + cellsOf(grid), 0);
    return start;
  });
}

/** The patch at a point of a panel, in pixels of the original picture, and its number among the panel's. */
function cellAt(panel, x, y) {
  let start = 0;
  for (const grid of panel.grids) {
    const column = grid.x.findIndex((edge, index) => edge <= x && x < grid.x[index + 1]);
    const row = grid.y.findIndex((edge, index) => edge <= y && y < grid.y[index + 1]);
    if (column >= 0 && row >= 0) {
      const box = [grid.x[column], grid.y[row], grid.x[column + 1], grid.y[row + 1]];
      return { row, column, box, index: start + row * (grid.x.length - 1) + column };
    }
    start += cellsOf(grid);
  }
  return null;
}

/** A picture with attention over it: dark where there is none, lit where there is most, and still to be seen. */
function paint(context, width, panel, image, map, start, marks, strength) {
  const scale = width / panel.width;
  const onCanvas = (box) => {
    const whole = [0, 0, panel.width, panel.height];
    const [left, top, right, bottom] = (box ?? whole).map((edge) => Math.round(edge * scale));
    return [left, top, right - left, bottom - top]; // whole pixels, so that no seams show
  };
  context.imageSmoothingEnabled = image.naturalWidth >= width;
  context.drawImage(image, 0, 0, width, panel.height * scale);
  const high = brightest(map);
  let index = start;
  for (const { x, y } of map ? panel.grids : []) {
    for (let row = 0; row + 1 < y.length; row++) {
      for (let column = 0; column + 1 < x.length; column++) {
        const share = map.cells[index++] / high;
        for (const [end, alpha] of [[[0, 0, 0], 0.65 * (1 - share)], [CIVIDIS.at(-1), 0.6 * share]]) {
          context.fillStyle = css(end, strength * alpha);
          context.fillRect(...onCanvas([x[column], y[row], x[column + 1], y[row + 1]]));
        }
      }
    }
  }
  const here = ({ media, seconds }) => media === panel.media
    && (!seconds || !panel.seconds || (seconds[0] < panel.seconds[1] && panel.seconds[0] < seconds[1]));
  for (const { box } of marks.regions.filter(here)) {
    context.fillStyle = "rgba(16,18,24,0.88)";
    context.fillRect(...onCanvas(box));
    outline(context, onCanvas(box), "#ffffff", [4, 3]);
  }
  for (const { box } of marks.evidence.filter(here)) outline(context, onCanvas(box), "#ffffff", []);
  if (marks.cursor) outline(context, onCanvas(marks.cursor), "#7fd0ff", []);
}

/** A line that is seen on any picture. */
function outline(context, rectangle, stroke, dashes) {
  for (const [style, thickness, dash] of [["rgba(0,0,0,0.75)", 4.5, []], [stroke, 2, dashes]]) {
    context.strokeStyle = style;
    context.lineWidth = thickness;
    context.setLineDash(dash);
    context.strokeRect(...rectangle);
  }
  context.setLineDash([]);
}

/** A decoded picture; draws everything again once it is there. */
function imageOf(ui, src) {
  if (!ui.images.has(src)) {
    const image = new Image();
    image.onload = ui.draw;
    image.src = src;
    ui.images.set(src, image);
  }
  const image = ui.images.get(src);
  return image.complete && image.naturalWidth ? image : null;
}

const marksOf = (ui) => ({ evidence: ui.state.evidence ?? ui.prompt.evidence, regions: ui.state.regions });
const boxOf = ([x0, y0], [x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];

/** Uses a tool on a part of a picture: marks it as the evidence, hides it, or shows it again. */
function use(ui, tool, panel, box) {
  const [left, top, right, bottom] = box.map((edge) => Math.round(edge * 10) / 10);
  const clipped = [Math.max(left, 0), Math.max(top, 0), Math.min(right, panel.width), Math.min(bottom, panel.height)];
  if (tool === "read" || clipped[0] >= clipped[2] || clipped[1] >= clipped[3]) return;
  const region = { media: panel.media, box: clipped, seconds: panel.seconds };
  if (tool === "evidence") ui.change({ evidence: [region] });
  else ui.change({ regions: [...without(ui.state.regions, region), region] });
}

/** Uses a tool on the patch at a point; what is hidden there is shown again. */
function useAt(ui, tool, panel, [x, y]) {
  const hidden = ui.state.regions.find(({ media, box }) => media === panel.media
    && box && box[0] <= x && x < box[2] && box[1] <= y && y < box[3]);
  if (tool === "knock out" && hidden) ui.change({ regions: without(ui.state.regions, hidden) });
  else if (cellAt(panel, x, y)) use(ui, tool, panel, cellAt(panel, x, y).box);
}

/** Lets mouse, pen, finger and keyboard read a picture and use tools on it; `hand` says where they are. */
function listen(ui, canvas, panel, hand, repaint) {
  const point = (event) => {
    const bounds = canvas.getBoundingClientRect();
    const scale = panel.width / bounds.width;
    return [(event.clientX - bounds.left) * scale, (event.clientY - bounds.top) * scale];
  };
  const toolOf = (event) => (ui.model.get("still") ? "read" : event.shiftKey ? "knock out" : ui.tool);
  const on = (name, listener) => canvas.addEventListener(name, (event) => { listener(event); repaint(); });
  on("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    hand.drag = { from: point(event), tool: toolOf(event) };
  });
  on("pointermove", (event) => Object.assign(hand, { panel, at: point(event) }));
  on("pointerup", (event) => {
    if (!hand.drag) return;
    const { from, tool } = hand.drag, to = point(event);
    hand.drag = null;
    const far = Math.hypot(to[0] - from[0], to[1] - from[1]) * canvas.clientWidth / panel.width > 5;
    if (far) use(ui, tool, panel, boxOf(from, to));
    else useAt(ui, tool, panel, to);
  });
  const leave = () => Object.assign(hand, { panel: null, drag: null });
  for (const name of ["pointerleave", "pointercancel", "blur"]) on(name, leave);
  on("keydown", (event) => {
    const began = hand.panel === panel;
    const cell = cellAt(panel, ...(began ? hand.at : [0, 0])) ?? cellAt(panel, 0, 0);
    if (!cell || !(event.key in ARROWS || event.key === "Enter" || event.key === " ")) return;
    event.preventDefault();
    const [left, top, right, bottom] = cell.box;
    if (!(event.key in ARROWS)) return useAt(ui, toolOf(event), panel, [(left + right) / 2, (top + bottom) / 2]);
    const [dx, dy] = began ? ARROWS[event.key] : [0, 0]; // the first press shows where the keyboard is
    const to = [(left + right) / 2 + dx * (right - left), (top + bottom) / 2 + dy * (bottom - top)];
    if (cellAt(panel, ...to)) Object.assign(hand, { panel, at: to });
  });
}

function pictures(ui) {
  const large = make("div", { className: "panels" });
  const small = make("div", { className: "others" });
  const bar = make("div", { className: "bar" });
  const readout = make("p", { className: "readout", "aria-live": "polite" });
  const hand = { panel: null, at: null, drag: null };
  let canvases = []; // { canvas, panel: its number, map: its number }
  let laid = { large: "", small: "" };

  function told() {
    if (!ui.current) return ui.view.note ?? "";
    const [focus] = ui.view.maps;
    if (!focus) return "Choose a head to see where it looks.";
    const cell = hand.panel && cellAt(hand.panel, ...hand.at);
    if (cell) {
      const [left, top, right, bottom] = cell.box.map(Math.round);
      const value = focus.cells[starts(ui.prompt.panels)[ui.prompt.panels.indexOf(hand.panel)] + cell.index];
      const where = `row ${cell.row}, column ${cell.column} · pixels ${left} to ${right}, ${top} to ${bottom}`;
      return `${where} · attention ${number(value)}`;
    }
    const evidence = focus.on_evidence === null ? "" : `${percent(focus.on_evidence)} on the evidence, `;
    const brightness = focus.cells.length ? `; brightest ${number(brightest(focus))}` : `. ${ui.prompt.no_boxes}`;
    return `${focus.head}: ${evidence}${percent(focus.on_pictures)} of its attention on pictures${brightness}`;
  }

  function repaint() {
    readout.textContent = told();
    if (!ui.current) return;
    const begin = starts(ui.prompt.panels);
    for (const { canvas, panel: index, map } of canvases) {
      const panel = ui.prompt.panels[index], image = imageOf(ui, panel.src);
      if (!image) continue;
      const pointed = map === 0 && hand.panel === panel;
      const cursor = !pointed ? null
        : hand.drag && hand.drag.tool !== "read" ? boxOf(hand.drag.from, hand.at) : cellAt(panel, ...hand.at)?.box;
      const width = Math.round(canvas.clientWidth || 400), ratio = window.devicePixelRatio || 1;
      canvas.width = width * ratio;
      canvas.height = Math.round(width * panel.height / panel.width) * ratio;
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      paint(context, width, panel, image, ui.view.maps[map], begin[index], { ...marksOf(ui), cursor }, ui.strength);
    }
  }

  /** Makes canvases where others are needed; those that stay keep the keyboard. */
  function layOut() {
    const { panels, key } = ui.prompt;
    const others = ui.view.maps.slice(1);
    const canvasOf = (panel, map) => {
      const canvas = make("canvas", { role: "img" });
      canvases.push({ canvas, panel, map });
      return canvas;
    };
    if (laid.large !== key) {
      laid = { large: key, small: "" };
      canvases = [];
      hand.panel = null;
      large.style.setProperty("--columns", Math.min(panels.length, panels.length > 4 ? 4 : 2));
      large.replaceChildren(...panels.map((panel, index) => {
        const canvas = canvasOf(index, 0);
        canvas.tabIndex = 0;
        listen(ui, canvas, panel, hand, repaint);
        return make("figure", {}, canvas, panel.label ? make("figcaption", {}, panel.label) : null);
      }));
    }
    const shown = JSON.stringify(others.map((map) => [map.head, brightest(map)]));
    if (laid.small !== shown) {
      laid.small = shown;
      canvases = canvases.filter(({ map }) => map === 0);
      small.replaceChildren(...others.map((map, index) => make("figure", {},
        button(make("span", { className: "row" }, ...panels.map((_, panel) => canvasOf(panel, index + 1))),
          () => ui.change({ heads: [map.head, ...without(ui.state.heads, map.head)] }),
          { title: `Bring ${map.head} to the front`, "aria-label": `Bring ${map.head} to the front` }),
        make("figcaption", {}, `${map.head}, to ${number(brightest(map))}`))));
    }
    const head = ui.view.maps[0]?.head ?? "no head";
    for (const { canvas, panel } of canvases) {
      const name = panels[panel].label || "picture";
      canvas.setAttribute("aria-label", `${name}, attention of ${head}; arrow keys read patches`);
    }
  }

  function draw() {
    const tools = { read: "Read", evidence: "Mark evidence", "knock out": "Knock out" };
    const moments = { before: "Before", after: "With changes" };
    const strength = make("input", {
      type: "range", min: 0, max: 1, step: 0.05, value: ui.strength,
      oninput: () => { ui.strength = Number(strength.value); repaint(); },
    });
    refill(bar,
      choice("What a click on the picture does", tools, ui.tool, (tool) => { ui.tool = tool; ui.draw(); }),
      ui.changed ? choice("Shown", moments, ui.state.moment, (moment) => ui.change({ moment })) : null,
      make("label", { className: "strength" }, "overlay", strength));
    if (ui.current) layOut();
    else if (!ui.prompt) {
      laid = { large: "", small: "" };
      canvases = [];
      large.replaceChildren();
      small.replaceChildren();
    }
    repaint();
  }
  new ResizeObserver(repaint).observe(large);
  return { element: make("section", { className: "pictures" }, bar, large, readout, small), draw };
}

// --- heads -----------------------------------------------------------------------------------------------------------

/** Every head with its value, highest first; heads without a value last. */
function ranked(ui) {
  const list = ui.about.n_heads.flatMap((count, layer) => Array.from({ length: count }, (_, head) =>
    ({ name: `L${layer}H${head}`, layer, head, value: ui.view.map?.[layer][head] ?? null })));
  const height = ({ value }) => value ?? -Infinity;
  return list.sort((one, other) => height(other) - height(one) || one.layer - other.layer || one.head - other.head);
}

/** Values as shares of the colours, one end of which is zero unless values lie on both sides of it. */
function scaleOf(list) {
  const values = list.map(({ value }) => value).filter((value) => value !== null);
  const [low, high] = [Math.min(0, ...values), Math.max(1e-9, ...values)];
  return { low, high, share: (value) => (value - low) / (high - low) };
}

/** What can be said of a head beside its value. */
function marksOfHead(ui, name) {
  return {
    shown: ui.state.heads.includes(name), focus: ui.state.heads[0] === name,
    core: ui.about.core.includes(name), ablated: ui.state.ablated.includes(name),
  };
}

/** Marks have to be seen on dark blue and on yellow. */
const inkOn = (share) => (share > 0.6 ? "#10131a" : "#ffffff");

function heads(ui) {
  const { about } = ui;
  const metric = make("select", { "aria-label": "Coloured by", onchange: () => ui.change({ metric: metric.value }) },
    ...Object.entries(about.metrics).map(([value, label]) => make("option", { value }, label)));
  const bar = make("div", { className: "bar" });
  const note = make("p", { className: "note" });
  const grid = make("div", {
    className: "heads", role: "grid", "aria-label": "Attention heads", "aria-multiselectable": "true",
  });
  const legend = make("div", { className: "legend" });
  const readout = make("p", { className: "readout", "aria-live": "polite" });
  const cells = new Map();
  let order = null, active = null;

  /** Lays out the cells anew if their order has changed. */
  function layOut(list) {
    const ranks = ui.state.order === "score";
    const key = ranks ? list.map(({ name }) => name).join() : "layer";
    if (key === order) return;
    order = key;
    const widest = Math.max(...about.n_heads);
    const inOrder = ranks ? list : [...list].sort((one, other) => other.layer - one.layer || one.head - other.head);
    const rows = [];
    inOrder.forEach((head, rank) => {
      const row = ranks ? Math.floor(rank / widest) : about.n_heads.length - 1 - head.layer;
      (rows[row] ??= []).push(head);
    });
    const focused = headOf(grid.getRootNode().activeElement);
    cells.clear();
    grid.style.setProperty("--heads", widest);
    grid.replaceChildren(...rows.filter((row) => row.length).map((row, index) => {
      const label = ranks ? `${index * widest + 1}` : `L${row[0].layer}`;
      const title = make("span", { className: "layer", role: "rowheader" }, label);
      return make("div", { className: "row", role: "row" }, title, ...row.map(({ name }) => {
        cells.set(name, make("button", { type: "button", role: "gridcell", tabIndex: -1, "data-head": name }));
        return cells.get(name);
      }));
    }));
    cells.get(focused)?.focus();
  }

  function drawCell({ name, value }, rank, list, scale) {
    const cell = cells.get(name), marks = marksOfHead(ui, name);
    cell.style.background = value === null ? "" : css(colour(scale.share(value)));
    cell.style.setProperty("--mark", value === null ? "" : inkOn(scale.share(value)));
    cell.className = Object.keys(marks).filter((mark) => marks[mark]).join(" ");
    cell.tabIndex = name === active ? 0 : -1;
    cell.setAttribute("aria-selected", String(marks.shown));
    const rankOf = `rank ${rank + 1} of ${list.length}`;
    const told = { [rankOf]: value !== null, "CoRe head": marks.core, ablated: marks.ablated };
    cell.dataset.told = [name, number(value), ...Object.keys(told).filter((what) => told[what])].join(" · ");
    cell.setAttribute("aria-label", cell.dataset.told);
  }

  function draw() {
    const clicks = { look: "Look", ablate: "Ablate" }, orders = { layer: "By layer", score: "Highest first" };
    metric.value = ui.state.metric;
    refill(bar, make("label", {}, "coloured by ", metric),
      choice("Order", orders, ui.state.order, (order) => ui.change({ order })),
      choice("What a click on a head does", clicks, ui.clicking, (clicking) => { ui.clicking = clicking; ui.draw(); }));
    const list = ranked(ui), scale = scaleOf(list);
    layOut(list);
    active = cells.has(active) ? active : ui.state.heads[0] ?? list[0].name;
    list.forEach((head, rank) => drawCell(head, rank, list, scale));
    note.textContent = ui.view.note ?? "";
    note.hidden = !note.textContent;
    const ramp = span("ramp");
    ramp.style.background = `linear-gradient(90deg, ${CIVIDIS.map((rgb) => css(rgb)).join()})`;
    const keys = { focus: "shown", ...(about.core.length ? { core: "CoRe head" } : {}), ablated: "ablated" };
    legend.replaceChildren(...(ui.view.map ? [number(scale.low), ramp, number(scale.high)] : []),
      ...Object.entries(keys).map(([mark, label]) => span("key", make("i", { className: mark }), label)));
    legend.title = about.core_name && `CoRe heads: ${about.core_name}`;
    tell(active);
  }

  const headOf = (element) => element?.closest?.("[data-head]")?.dataset.head;
  const tell = (name) => { readout.textContent = cells.get(name)?.dataset.told ?? ""; };
  grid.addEventListener("click", (event) => {
    const name = headOf(event.target);
    if (!name || ui.model.get("still")) return;
    active = name;
    if (ui.clicking === "ablate" || event.altKey) ui.toggleAblated(name);
    else ui.look(name, event.ctrlKey || event.metaKey || event.shiftKey);
  });
  for (const name of ["pointerover", "focusin"]) {
    grid.addEventListener(name, (event) => headOf(event.target) && tell(headOf(event.target)));
  }
  grid.addEventListener("pointerleave", () => tell(active));
  grid.addEventListener("keydown", (event) => {
    const name = headOf(event.target);
    if (!name || ui.model.get("still")) return;
    if (event.key === "a") ui.toggleAblated(name);
    else if (event.key === "+") ui.look(name, true);
    else if (event.key in ARROWS) {
      const rows = [...grid.children].map((row) => [...row.querySelectorAll("button")]);
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
  return { element: make("section", { className: "map" }, bar, note, grid, legend, readout), draw };
}

// --- answers, changes, code ------------------------------------------------------------------------------------------

function answers(ui) {
  const element = make("section", { className: "answers", "aria-live": "polite" });
  const card = (name, label, said) => make("div", { className: `answer ${name}` },
    span("quiet", label), make("strong", {}, said.text), span("", percent(said.probability)));
  const bar = (name, value) => {
    const drawn = span(`bar-of ${name}`);
    drawn.style.setProperty("--share", value);
    return make("td", {}, drawn, span("value", percent(value)));
  };
  function draw() {
    if (!ui.view.before) return element.replaceChildren();
    if (!ui.current) return;
    const { before, after, alternatives, state } = ui.view;
    const changed = state.ablated.length + state.regions.length > 0; // as it is shown
    const { expected } = ui.prompt;
    const left = after.text === before.text ? "" : ` (${before.text}: ${percent(after.of_plain)})`;
    element.replaceChildren(
      make("div", { className: "pair" }, card("before", expected ? `answer (expected: ${expected})` : "answer", before),
        changed ? card("after", `with changes${left}`, after) : ""),
      make("table", {}, make("caption", {}, "first token of the answer"), make("tbody", {},
        ...alternatives.map((row) => make("tr", {}, make("th", { scope: "row" }, row.text),
          bar("before", row.before), changed ? bar("after", row.after) : null)))));
  }
  return { element, draw };
}

function changes(ui) {
  const chips = make("div", { className: "chips" });
  const bar = make("div", { className: "bar" });
  const title = make("h2", {}, "Changes, from the question on");
  const hint = "None yet. Ablate heads in the map (Alt-click, or A), or hide parts of the picture (Shift-drag).";
  function draw() {
    const { ablated, regions, how, blind, heads } = ui.state;
    const more = (label, names) => button(label, () => ui.change({ ablated: [...new Set([...ablated, ...names])] }),
      { disabled: names.every((name) => ablated.includes(name)) });
    const hows = { zero: "Zero", mean: "Mean" }, blinds = { all: "Hidden from all heads", chosen: "From those shown" };
    refill(bar,
      more("Ablate shown", heads),
      ui.about.core.length ? more("Ablate CoRe heads", ui.about.core) : null,
      choice("What stands in for what ablated heads find", hows, how, (how) => ui.change({ how })),
      regions.length ? choice("Whom regions are hidden from", blinds, blind, (blind) => ui.change({ blind })) : null,
      button("Clear", () => ui.change({ ablated: [], regions: [] }), { disabled: !ui.changed }));
    const chip = (label, patch) => button(`${label} ×`, () => ui.change(patch),
      { className: "chip", "aria-label": `Undo: ${label}` });
    const named = ({ box }) => (box ? `${box.map(Math.round).join(" ")} hidden` : "all hidden");
    refill(chips,
      ...ablated.map((name) => chip(`${name} ablated`, { ablated: without(ablated, name) })),
      ...regions.map((region) => chip(named(region), { regions: without(regions, region) })),
      ui.changed ? null : span("quiet", hint));
  }
  return { element: make("section", { className: "changes" }, title, bar, chips), draw };
}

function code(ui) {
  const text = make("pre", { tabIndex: 0 });
  const copy = button("Copy", () => copyText(text.textContent, copy));
  const element = make("details", { className: "code" },
    make("summary", {}, "Python that reproduces this"), copy, text);
  return { element, draw() { text.textContent = ui.view.code ?? ""; } };
}

// --- a figure of what is shown ---------------------------------------------------------------------------------------

function figure(ui) {
  const { panels, question, tokens } = ui.prompt;
  const [focus] = ui.view.maps;
  const left = 40, right = 690, top = 96, side = 560;
  const across = Math.ceil(Math.sqrt(panels.length)), each = side / across;
  const tallest = Math.max(...panels.map((panel) => each * panel.height / panel.width), 0);
  const rows = ui.about.n_heads.length, size = Math.min(670 / Math.max(...ui.about.n_heads), 34);
  const height = top + 40 + Math.max(Math.ceil(panels.length / across) * tallest, rows * size + 150);
  const canvas = make("canvas", { width: 2 * 1400, height: 2 * height });
  const context = canvas.getContext("2d");
  const write = (text, x, y, size = 15, align = "left") => {
    context.fillStyle = "#1f2430";
    context.font = `${size}px system-ui, sans-serif`;
    context.textAlign = align;
    context.fillText(text, x, y);
  };
  context.scale(2, 2);
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, 1400, height);
  write(question, left, 44, 22);
  const looking = tokens.find(({ position }) => position === ui.state.token) ?? tokens.at(-1);
  const highest = number(brightest(focus));
  write(focus ? `${focus.head}, from “${looking.text.trim()}”; brightest ${highest}` : "", left, 76);
  write(ui.about.metrics[ui.state.metric], right, 76);
  const begin = starts(panels);
  panels.forEach((panel, index) => {
    context.save();
    context.translate(left + (index % across) * each, top + Math.floor(index / across) * tallest);
    paint(context, each - 6, panel, imageOf(ui, panel.src), focus, begin[index], marksOf(ui), ui.strength);
    context.restore();
  });
  const list = ranked(ui), scale = scaleOf(list);
  for (const { name, layer, head, value } of list) {
    const x = right + head * size, y = top + (rows - 1 - layer) * size, inner = size - 2;
    const share = scale.share(value), marks = marksOfHead(ui, name);
    if (!head) write(`L${layer}`, x - 10, y + size / 2 + 4, 12, "right");
    context.fillStyle = value === null ? "#e6e9ee" : css(colour(share));
    context.fillRect(x, y, inner, inner);
    context.strokeStyle = inkOn(value === null ? 1 : share);
    context.lineWidth = size / 18;
    context.beginPath();
    if (marks.core) context.arc(x + inner / 2, y + inner / 2, inner / 4, 0, 2 * Math.PI);
    for (const [from, to] of marks.ablated ? [[0.15, 0.85], [0.85, 0.15]] : []) {
      context.moveTo(x + inner * from, y + inner * 0.15);
      context.lineTo(x + inner * to, y + inner * 0.85);
    }
    context.stroke();
    if (marks.shown) outline(context, [x, y, inner, inner], "#ff9d5c", []);
  }
  const below = top + rows * size;
  const done = [ui.state.ablated.length ? `${ui.state.ablated.join(", ")} ablated (${ui.state.how})` : "",
    ui.state.regions.length ? `regions hidden: ${ui.state.regions.length}` : ""].filter(Boolean).join("; ");
  const { before, after } = ui.view;
  const key = "outlined: shown; ring: CoRe head; cross: ablated";
  write(`${number(scale.low)} to ${number(scale.high)}; ${key}`, right, below + 24, 13);
  write(`answer: ${before.text} (${percent(before.probability)})`, right, below + 70, 20);
  if (done) write(`with changes: ${after.text} (${percent(after.probability)})`, right, below + 100, 20);
  write(done, right, below + 124, 13);
  return canvas;
}

export default { render };
