// The explorer's front end: one module without a build, for notebooks (anywidget), for a page of its own, and for
// pages that were saved.
//
// All there is to say is in a few values that are synchronised with Python: `state` is what the user has chosen, and is
// written here alone; `prompt` and `view` are what Python shows for it. Nothing here computes a number about the model.

const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"]
  .map((hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16)));
const LEFT = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

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

function button(label, action, properties = {}) {
  return make("button", { type: "button", onclick: action, ...properties }, label);
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
  return value === null ? "no value" : Math.abs(value) >= 0.001 || value === 0 ? value.toPrecision(3) : value.toExponential(1);
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
    strength: 0.8, // of the overlay
    files: {}, // own pictures, as they were dropped
    images: new Map(), // decoded, by address
    past: [], future: [],
    get state() { return { ...about.first, ...model.get("state") }; },
    get view() { return model.get("view") ?? {}; },
    get prompt() { return model.get("prompt"); },
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
    toggleHead(name, of) {
      const chosen = ui.state[of];
      ui.change({ [of]: chosen.includes(name) ? without(chosen, name) : [name, ...chosen] });
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
    alert.textContent = model.get("error");
    alert.hidden = !model.get("error");
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
  const copy = button("Copy link", () => {
    navigator.clipboard.writeText(location.href).then(() => (copy.textContent = "Copied"));
    setTimeout(() => (copy.textContent = "Copy link"), 1500);
  });
  ui.pick = () => picker.click();
  const element = make("header", {},
    make("h1", {}, "corelens"), make("span", { className: "quiet" }, ui.about.model),
    make("span", { className: "tools" }, undo, redo,
      button("Reset", () => ui.change(ui.about.first)), button("Open…", ui.pick), picker,
      ui.model.get("linked") ? copy : null, saved));
  return { element, draw() { undo.disabled = !ui.past.length; redo.disabled = !ui.future.length; } };
}

/** Pictures become what is asked about; a saved view is restored. */
async function open(ui, files) {
  const pictures = [];
  for (const file of files) {
    if (file.name.endsWith(".json")) {
      let kept = null;
      try { kept = JSON.parse(await read(file, "readAsText")); } catch { /* said below */ }
      if (!kept?.state) { ui.model.set("error", `${file.name} is no saved view.`); return; }
      Object.assign(ui.files, kept.pictures);
      ui.change({ ...ui.about.first, ...kept.state });
      return;
    }
    const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
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
  const values = { about: { ...ui.about, gallery: [] }, state: ui.state, prompt: ui.prompt, view: ui.view, error: "", still: true };
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
  const choose = (id) => ui.change({ sample: id, pictures: [], question: null, evidence: null, regions: [], token: null });
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
  const input = make("input", { type: "text", placeholder: "Ask about the picture", "aria-label": "Question", maxLength: 2000 });
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
    if (!ui.current) return tokens.replaceChildren();
    const [focus] = ui.view.maps;
    const last = ui.prompt.tokens.at(-1).position;
    const looking = ui.state.token ?? last;
    tokens.replaceChildren(make("span", { className: "quiet" }, "looks from"), ...ui.prompt.tokens.map((token, index) => {
      const value = focus?.tokens[index] ?? 0;
      const said = focus ? `; ${focus.head} puts ${number(value)} of its attention on it` : "";
      const what = token.role === "question" ? "" : ` (${token.role}${token.position === last ? ", says the first word of the answer" : ""})`;
      return button(token.text.trim() || "␣", () => ui.change({ token: token.position === last ? null : token.position }), {
        className: token.role === "question" ? "" : "structural",
        "aria-pressed": String(token.position === looking), title: `position ${token.position}${what}${said}`,
        style: `--share:${Math.min(value, 1)}`, "data-position": token.position,
      });
    }));
  }
  return { element: make("section", { className: "asked" }, form, tokens), draw };
}

// --- pictures --------------------------------------------------------------------------------------------------------

/** Where each panel's cells begin among the values of a map. */
function starts(panels) {
  let start = 0;
  return panels.map((panel) => {
    const own = start;
    for (const grid of panel.grids) start += (grid.x.length - 1) * (grid.y.length - 1);
    return own;
  });
}

/** The cell at a point of a panel, in pixels of the original picture. */
function cellAt(panel, start, x, y) {
  for (const grid of panel.grids) {
    const column = grid.x.findIndex((edge, index) => edge <= x && x < grid.x[index + 1]);
    const row = grid.y.findIndex((edge, index) => edge <= y && y < grid.y[index + 1]);
    const columns = grid.x.length - 1;
    if (column >= 0 && row >= 0) {
      return { row, column, index: start + row * columns + column, grid,
        box: [grid.x[column], grid.y[row], grid.x[column + 1], grid.y[row + 1]] };
    }
    start += columns * (grid.y.length - 1);
  }
  return null;
}

/** A picture with attention over it: dark where there is none, lit where there is most, so that it can still be seen. */
function paint(context, width, panel, image, cells, start, high, marks, strength) {
  const scale = width / panel.width;
  const rectangle = ([left, top, right, bottom]) => [left * scale, top * scale, (right - left) * scale, (bottom - top) * scale];
  context.imageSmoothingEnabled = image.naturalWidth >= width;
  context.drawImage(image, 0, 0, width, panel.height * scale);
  let index = start;
  for (const grid of cells ? panel.grids : []) {
    for (let row = 0; row + 1 < grid.y.length; row++) {
      for (let column = 0; column + 1 < grid.x.length; column++) {
        const share = Math.min(cells[index++] / high, 1);
        // Whole pixels, so that no seams show.
        const [x, y] = [Math.round(grid.x[column] * scale), Math.round(grid.y[row] * scale)];
        const cell = [x, y, Math.round(grid.x[column + 1] * scale) - x, Math.round(grid.y[row + 1] * scale) - y];
        for (const [ends, alpha] of [[[0, 0, 0], 0.65 * (1 - share)], [CIVIDIS.at(-1), 0.6 * share]]) {
          context.fillStyle = css(ends, strength * alpha);
          context.fillRect(...cell);
        }
      }
    }
  }
  const own = ({ media, seconds }) => media === panel.media && (!seconds || !panel.seconds
    || (seconds[0] < panel.seconds[1] && panel.seconds[0] < seconds[1]));
  const whole = [0, 0, panel.width, panel.height];
  for (const { box } of marks.regions.filter(own)) {
    const [x, y, w, h] = rectangle(box ?? whole);
    context.fillStyle = "rgba(16,18,24,0.82)";
    context.fillRect(x, y, w, h);
    hatch(context, x, y, w, h);
    outline(context, [x, y, w, h], "#ffffff", [4, 3]);
  }
  for (const { box } of marks.evidence.filter(own)) outline(context, rectangle(box ?? whole), "#ffffff", []);
  if (marks.cursor) outline(context, rectangle(marks.cursor), "#7fd0ff", []);
}

function outline(context, [x, y, w, h], stroke, dashes) {
  for (const [style, thickness, dash] of [["rgba(0,0,0,0.75)", 4.5, []], [stroke, 2, dashes]]) {
    context.strokeStyle = style;
    context.lineWidth = thickness;
    context.setLineDash(dash);
    context.strokeRect(x, y, w, h);
  }
  context.setLineDash([]);
}

function hatch(context, x, y, w, h) {
  context.save();
  context.beginPath();
  context.rect(x, y, w, h);
  context.clip();
  context.strokeStyle = "rgba(255,255,255,0.35)";
  context.lineWidth = 1;
  context.beginPath();
  for (let at = -h; at < w; at += 8) {
    context.moveTo(x + at, y + h);
    context.lineTo(x + at + h, y);
  }
  context.stroke();
  context.restore();
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

const highest = (view) => Math.max(1e-9, ...view.maps.map(({ cells }) => cells.reduce((most, value) => Math.max(most, value), 0)));
const evidenceOf = (ui) => ui.state.evidence ?? ui.prompt.evidence;

function pictures(ui) {
  const large = make("div", { className: "panels" });
  const small = make("div", { className: "others" });
  const bar = make("div", { className: "bar" });
  const readout = make("p", { className: "readout", "aria-live": "polite" });
  let cursor = null; // { panel, x, y } in pixels of the original
  let band = null; // { panel, from, to } of a drag
  let canvases = [];

  function told(at) {
    if (!ui.current) return "";
    const [focus] = ui.view.maps;
    const panel = ui.prompt.panels[at?.panel];
    const cell = panel && cellAt(panel, starts(ui.prompt.panels)[at.panel], at.x, at.y);
    if (cell && focus) {
      const [left, top, right, bottom] = cell.box.map(Math.round);
      return `row ${cell.row}, column ${cell.column} · pixels ${left} to ${right}, ${top} to ${bottom} · attention ${number(focus.cells[cell.index])}`;
    }
    if (!focus) return "Choose a head to see where it looks.";
    const evidence = focus.on_evidence === null ? "" : `${percent(focus.on_evidence)} on the evidence, `;
    return `${focus.head}: ${evidence}${percent(focus.on_pictures)} of its attention on pictures; brightest ${number(highest(ui.view))}`;
  }

  function apply(panelIndex, box, tool) {
    const panel = ui.prompt.panels[panelIndex];
    const [left, top, right, bottom] = box;
    const clipped = [Math.max(left, 0), Math.max(top, 0), Math.min(right, panel.width), Math.min(bottom, panel.height)]
      .map((edge) => Math.round(edge * 10) / 10);
    if (clipped[0] >= clipped[2] || clipped[1] >= clipped[3]) return;
    const region = { media: panel.media, box: clipped, seconds: panel.seconds };
    const { regions } = ui.state;
    if (tool === "evidence") ui.change({ evidence: [region] });
    else ui.change({ regions: regions.some((one) => same(one, region)) ? without(regions, region) : [...regions, region] });
  }

  /** A click: on a region it opens it again, elsewhere the tool takes the patch. */
  function click(index, x, y, tool) {
    const panel = ui.prompt.panels[index];
    const hit = ui.state.regions.find(({ media, box }) => media === panel.media && box
      && box[0] <= x && x < box[2] && box[1] <= y && y < box[3]);
    if (tool === "knock out" && hit) return ui.change({ regions: without(ui.state.regions, hit) });
    const cell = cellAt(panel, 0, x, y);
    if (cell && tool !== "read") apply(index, cell.box, tool);
  }

  function listen(canvas, index) {
    const panel = ui.prompt.panels[index];
    const point = (event) => {
      const bounds = canvas.getBoundingClientRect();
      return [(event.clientX - bounds.left) / bounds.width * panel.width, (event.clientY - bounds.top) / bounds.height * panel.height];
    };
    const tool = (event) => (event.shiftKey ? "knock out" : ui.tool);
    canvas.addEventListener("pointerdown", (event) => {
      if (ui.model.get("still")) return;
      canvas.setPointerCapture(event.pointerId);
      band = { panel: index, from: point(event), to: point(event), tool: tool(event) };
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = point(event);
      cursor = { panel: index, x, y };
      if (band) band.to = [x, y];
      repaint();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (!band) return;
      const { from, to, tool } = band;
      band = null;
      const far = Math.hypot(to[0] - from[0], to[1] - from[1]) * canvas.clientWidth / panel.width > 5;
      if (!far) click(index, ...to, tool);
      else if (tool !== "read") apply(index, boxOf(from, to), tool);
      repaint();
    });
    canvas.addEventListener("pointerleave", () => { cursor = band = null; repaint(); });
    canvas.addEventListener("blur", () => { cursor = null; repaint(); });
    canvas.addEventListener("keydown", (event) => {
      const here = cursor ?? { panel: index, x: 0, y: 0 };
      const cell = cellAt(panel, 0, here.x, here.y);
      if (!cell) return;
      const [left, top, right, bottom] = cell.box;
      if (LEFT[event.key]) {
        const [dx, dy] = cursor ? LEFT[event.key] : [0, 0];
        const x = (left + right) / 2 + dx * (right - left), y = (top + bottom) / 2 + dy * (bottom - top);
        if (cellAt(panel, 0, x, y)) cursor = { panel: index, x, y };
        repaint();
      } else if (event.key === "Enter" || event.key === " ") click(index, here.x, here.y, tool(event));
      else return;
      event.preventDefault();
    });
  }

  const boxOf = ([x0, y0], [x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];

  function repaint() {
    readout.textContent = told(cursor);
    if (!ui.current) return;
    const { panels } = ui.prompt;
    const begin = starts(panels), high = highest(ui.view);
    const marks = { evidence: evidenceOf(ui), regions: ui.state.regions };
    for (const { canvas, index, map } of canvases) {
      const panel = panels[index], image = imageOf(ui, panel.src);
      if (!image) continue;
      const [context, ratio] = [canvas.getContext("2d"), window.devicePixelRatio || 1];
      const width = Math.round(canvas.clientWidth || 400);
      canvas.width = width * ratio;
      canvas.height = Math.round(width * panel.height / panel.width) * ratio;
      context.scale(ratio, ratio);
      const cell = map === 0 && cursor?.panel === index ? cellAt(panel, 0, cursor.x, cursor.y) : null;
      const drawn = band?.panel === index && band.tool !== "read" && map === 0 ? boxOf(band.from, band.to) : cell?.box;
      paint(context, width, panel, image, ui.view.maps[map]?.cells, begin[index], high, { ...marks, cursor: drawn }, ui.strength);
    }
  }

  function canvasOf(index, map, label) {
    const canvas = make("canvas", { role: "img", "aria-label": label });
    canvases.push({ canvas, index, map });
    return canvas;
  }

  let laid = "";
  function layOut() {
    const { panels } = ui.prompt;
    const names = ui.view.maps.map(({ head }) => head);
    const key = JSON.stringify([ui.prompt.key, names]);
    if (key === laid) return; // canvases stay, and so does the focus of the keyboard
    laid = key;
    canvases = [];
    large.style.setProperty("--columns", Math.min(panels.length, panels.length > 4 ? 4 : 2));
    large.replaceChildren(...panels.map((panel, index) => {
      const canvas = canvasOf(index, 0, `${panel.label || "picture"}, attention of ${names[0] ?? "no head"}; arrow keys read patches`);
      canvas.tabIndex = 0;
      listen(canvas, index);
      return make("figure", {}, canvas, panel.label ? make("figcaption", {}, panel.label) : null);
    }));
    small.replaceChildren(...names.slice(1).map((name, other) => make("figure", {},
      button(make("span", { className: "row" }, ...panels.map((panel, index) => canvasOf(index, other + 1, ""))),
        () => ui.change({ heads: [name, ...without(ui.state.heads, name)] }), { title: `Bring ${name} to the front` }),
      make("figcaption", {}, name))));
  }

  function draw() {
    const changed = ui.state.ablated.length + ui.state.regions.length > 0;
    bar.replaceChildren(
      choice("What a click on the picture does", { read: "Read", evidence: "Mark evidence", "knock out": "Knock out" }, ui.tool,
        (tool) => { ui.tool = tool; ui.draw(); }),
      ...(changed ? [choice("Shown", { before: "Before", after: "With changes" }, ui.state.moment, (moment) => ui.change({ moment }))] : []),
      make("label", { className: "strength" }, "overlay", make("input", {
        type: "range", min: 0, max: 1, step: 0.05, value: ui.strength,
        oninput: (event) => { ui.strength = Number(event.target.value); repaint(); },
      })));
    if (ui.current) layOut();
    else { laid = ""; canvases = []; large.replaceChildren(); small.replaceChildren(); }
    repaint();
    if (!ui.current || !ui.prompt.panels.some(({ grids }) => grids.length)) {
      readout.textContent = ui.current ? (ui.prompt.no_boxes || told(null)) : ui.view.note ?? "";
    }
  }
  new ResizeObserver(repaint).observe(large);
  return { element: make("section", { className: "pictures" }, bar, large, readout, small), draw };
}

// --- heads -----------------------------------------------------------------------------------------------------------

/** Every head with its value, highest first; heads without a value last. */
function ranked(ui) {
  const values = ui.view.map;
  const list = ui.about.n_heads.flatMap((count, layer) => Array.from({ length: count }, (_, head) =>
    ({ name: `L${layer}H${head}`, layer, head, value: values?.[layer][head] ?? null })));
  return list.sort((one, other) => (other.value ?? -Infinity) - (one.value ?? -Infinity) || one.layer - other.layer || one.head - other.head);
}

/** The ends of the colours: zero is one of them, unless values lie on both sides of it. */
function range(list) {
  const values = list.map(({ value }) => value).filter((value) => value !== null);
  return [Math.min(0, ...values), Math.max(1e-9, ...values)];
}

function heads(ui) {
  const { about } = ui;
  const metric = make("select", { "aria-label": "Coloured by", onchange: () => ui.change({ metric: metric.value }) },
    ...Object.entries(about.metrics).map(([value, label]) => make("option", { value }, label)));
  const bar = make("div", { className: "bar" });
  const grid = make("div", { className: "heads", role: "grid", "aria-label": "Attention heads", "aria-multiselectable": "true" });
  const legend = make("div", { className: "legend" });
  const readout = make("p", { className: "readout", "aria-live": "polite" });
  const note = make("p", { className: "note" });
  const cells = new Map();
  let order = null, active = null;

  function layOut(list) {
    const key = ui.state.order === "score" ? list.map(({ name }) => name).join() : "layer";
    if (key === order) return;
    order = key;
    const byLayer = about.n_heads.map((_, layer) => list.filter((head) => head.layer === layer).sort((one, other) => one.head - other.head));
    const widest = Math.max(...about.n_heads);
    const rows = ui.state.order === "layer" ? byLayer.reverse()
      : Array.from({ length: Math.ceil(list.length / widest) }, (_, row) => list.slice(row * widest, (row + 1) * widest));
    const focused = document.activeElement?.dataset?.head;
    cells.clear();
    grid.style.setProperty("--heads", widest);
    grid.replaceChildren(...rows.filter((row) => row.length).map((row, index) => make("div", { className: "row", role: "row" },
      make("span", { className: "layer", role: "rowheader" }, ui.state.order === "layer" ? `L${row[0].layer}` : `${index * widest + 1}`),
      ...row.map(({ name }) => {
        const cell = make("button", { type: "button", role: "gridcell", tabIndex: -1, "data-head": name });
        cells.set(name, cell);
        return cell;
      }))));
    if (focused) cells.get(focused)?.focus();
  }

  function draw() {
    metric.value = ui.state.metric;
    bar.replaceChildren(make("label", {}, "coloured by ", metric),
      choice("Order", { layer: "By layer", score: "Highest first" }, ui.state.order, (value) => ui.change({ order: value })),
      choice("What a click on a head does", { look: "Look", ablate: "Ablate" }, ui.clicking,
        (value) => { ui.clicking = value; ui.draw(); }));
    const list = ranked(ui);
    const [low, high] = range(list);
    layOut(list);
    active = cells.has(active) ? active : ui.state.heads[0] ?? list[0].name;
    list.forEach(({ name, value }, rank) => {
      const cell = cells.get(name);
      const [shown, core, ablated] = [ui.state.heads.includes(name), about.core.includes(name), ui.state.ablated.includes(name)];
      cell.style.background = value === null ? "" : css(colour((value - low) / (high - low)));
      // A mark has to be seen on dark blue and on yellow.
      cell.style.setProperty("--mark", value !== null && (value - low) / (high - low) > 0.6 ? "#10131a" : "#ffffff");
      cell.className = [shown && "shown", ui.state.heads[0] === name && "focus", core && "core", ablated && "ablated"].filter(Boolean).join(" ");
      cell.tabIndex = name === active ? 0 : -1;
      cell.setAttribute("aria-selected", String(shown));
      cell.dataset.told = `${name} · ${number(value)}${value === null ? "" : ` · rank ${rank + 1} of ${list.length}`}${core ? " · CoRe head" : ""}${ablated ? " · ablated" : ""}${shown ? " · shown" : ""}`;
      cell.setAttribute("aria-label", cell.dataset.told);
    });
    note.textContent = ui.view.note ?? "";
    note.hidden = !note.textContent;
    legend.replaceChildren(number(low), make("span", { className: "ramp", style: `background:linear-gradient(90deg,${CIVIDIS.map((rgb) => css(rgb)).join()})` }),
      number(high), ...[["focus", "shown"], about.core.length ? ["core", "CoRe head"] : null, ["ablated", "ablated"]].filter(Boolean)
        .map(([mark, label]) => make("span", { className: "key" }, make("i", { className: mark }), label)));
    told(active);
  }

  function told(name) { readout.textContent = cells.get(name)?.dataset.told ?? ""; }
  const headOf = (event) => event.target.closest?.("[data-head]")?.dataset.head;
  grid.addEventListener("click", (event) => {
    const name = headOf(event);
    if (!name || ui.model.get("still")) return;
    active = name;
    if (ui.clicking === "ablate" || event.altKey) ui.toggleHead(name, "ablated");
    else ui.look(name, event.ctrlKey || event.metaKey || event.shiftKey);
  });
  for (const event of ["pointerover", "focusin"]) grid.addEventListener(event, (at) => headOf(at) && told(headOf(at)));
  grid.addEventListener("pointerleave", () => told(active));
  grid.addEventListener("keydown", (event) => {
    const name = headOf(event);
    if (!name) return;
    if (event.key === "a") ui.toggleHead(name, "ablated");
    else if (event.key === "+") ui.look(name, true);
    else if (LEFT[event.key]) {
      const rows = [...grid.children].map((row) => [...row.querySelectorAll("button")]);
      const y = rows.findIndex((row) => row.some((cell) => cell.dataset.head === name));
      const x = rows[y].findIndex((cell) => cell.dataset.head === name);
      const [dx, dy] = LEFT[event.key];
      const row = rows[Math.min(Math.max(y + dy, 0), rows.length - 1)];
      const next = row[Math.min(Math.max(x + dx, 0), row.length - 1)];
      cells.get(active)?.setAttribute("tabindex", "-1");
      active = next.dataset.head;
      next.tabIndex = 0;
      next.focus();
    } else return;
    event.preventDefault();
  });
  const element = make("section", { className: "map" }, bar, note, grid, legend, readout);
  return { element, draw };
}

// --- answers, changes, code ------------------------------------------------------------------------------------------

function answers(ui) {
  const element = make("section", { className: "answers", "aria-live": "polite" });
  function draw() {
    if (!ui.current) return element.replaceChildren();
    const { before, after, alternatives } = ui.view;
    const changed = ui.view.state.ablated.length + ui.view.state.regions.length > 0;
    const card = (label, said, name) => make("div", { className: `answer ${name}` },
      make("span", { className: "quiet" }, label), make("strong", {}, said.text), make("span", {}, percent(said.probability)));
    const bars = (row) => [["before", row.before], ...(changed ? [["after", row.after]] : [])].map(([name, value]) =>
      make("td", {}, make("span", { className: `bar-of ${name}`, style: `--share:${value}` }), make("span", { className: "value" }, percent(value))));
    const { expected } = ui.prompt;
    const left = after.text === before.text ? "" : ` (${before.text}: ${percent(after.of_plain)})`;
    element.replaceChildren(
      make("div", { className: "pair" }, card(expected ? `answer (expected: ${expected})` : "answer", before, "before"),
        changed ? card(`with changes${left}`, after, "after") : ""),
      make("table", {}, make("caption", {}, "first token of the answer"), make("tbody", {},
        ...alternatives.map((row) => make("tr", {}, make("th", { scope: "row" }, row.text), ...bars(row))))));
  }
  return { element, draw };
}

function changes(ui) {
  const chips = make("div", { className: "chips" });
  const options = make("div", { className: "bar" });
  const element = make("section", { className: "changes" }, make("h2", {}, "Changes, from the question on"), options, chips);
  function draw() {
    const { ablated, regions, how, blind, heads } = ui.state;
    const core = ui.about.core;
    const ablate = (names) => ui.change({ ablated: [...new Set([...ablated, ...names])] });
    options.replaceChildren(
      button("Ablate shown", () => ablate(heads), { disabled: heads.every((name) => ablated.includes(name)) }),
      ...(core.length ? [button("Ablate CoRe heads", () => ablate(core), { disabled: core.every((name) => ablated.includes(name)) })] : []),
      choice("What stands in for what ablated heads find", { zero: "Zero", mean: "Mean" }, how, (value) => ui.change({ how: value })),
      ...(regions.length ? [choice("Who may not look at the regions", { all: "No head looks", chosen: "Shown heads do not" }, blind, (value) => ui.change({ blind: value }))] : []),
      button("Clear", () => ui.change({ ablated: [], regions: [] }), { disabled: !ablated.length && !regions.length }));
    const chip = (label, remove) => button(`${label} ×`, remove, { className: "chip", "aria-label": `Undo: ${label}` });
    chips.replaceChildren(
      ...ablated.map((name) => chip(`${name} ablated`, () => ui.change({ ablated: without(ablated, name) }))),
      ...regions.map((region) => chip(`region ${(region.box ?? ["all"]).map((edge) => typeof edge === "number" ? Math.round(edge) : edge).join(" ")} hidden`,
        () => ui.change({ regions: without(regions, region) }))),
      ablated.length + regions.length ? "" : make("span", { className: "quiet" },
        "None yet. Ablate heads in the map (Alt-click, or A), or hide parts of the picture (Shift-drag)."));
  }
  return { element, draw };
}

function code(ui) {
  const text = make("pre", { tabIndex: 0 });
  const copy = button("Copy", () => navigator.clipboard.writeText(text.textContent).then(() => (copy.textContent = "Copied")));
  const element = make("details", { className: "code" }, make("summary", {}, "Python that reproduces this"), copy, text);
  return { element, draw() { text.textContent = ui.view.code ?? ""; copy.textContent = "Copy"; } };
}

// --- a figure of what is shown ---------------------------------------------------------------------------------------

function figure(ui) {
  const { panels, question } = ui.prompt;
  const width = 1400, side = 560, top = 96;
  const columns = Math.ceil(Math.sqrt(panels.length)), each = side / columns;
  const heights = panels.map((panel) => each * panel.height / panel.width);
  const rows = ui.about.n_heads.length, size = Math.min((width - side - 170) / Math.max(...ui.about.n_heads), 34);
  const tall = Math.max(Math.ceil(panels.length / columns) * Math.max(...heights), rows * size + 60);
  const canvas = make("canvas", { width: 2 * width, height: 2 * (top + tall + 110) });
  const context = canvas.getContext("2d");
  const write = (text, x, y, font = "15px system-ui, sans-serif", align = "left") => {
    context.fillStyle = "#1f2430";
    context.font = font;
    context.textAlign = align;
    context.fillText(text, x, y);
  };
  context.scale(2, 2);
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, width, canvas.height);
  write(question, 40, 44, "600 22px system-ui, sans-serif");
  const [focus] = ui.view.maps;
  write(focus ? `${focus.head}, from “${tokenName(ui)}”; highest ${number(highest(ui.view))}` : "", 40, 76);
  write(ui.about.metrics[ui.state.metric], side + 130, 76);
  const begin = starts(panels);
  panels.forEach((panel, index) => {
    const image = imageOf(ui, panel.src);
    if (!image) return;
    context.save();
    context.translate(40 + (index % columns) * each, top + Math.floor(index / columns) * Math.max(...heights));
    paint(context, each - 6, panel, image, focus?.cells, begin[index], highest(ui.view), { evidence: evidenceOf(ui), regions: ui.state.regions }, ui.strength);
    context.restore();
  });
  const list = ranked(ui), [low, high] = range(list);
  for (const { name, layer, head, value } of list) {
    const x = side + 130 + head * size, y = top + (rows - 1 - layer) * size, inner = size - 2;
    if (!head) write(`L${layer}`, x - 10, y + size / 2 + 4, "12px system-ui, sans-serif", "right");
    const share = (value - low) / (high - low);
    context.fillStyle = value === null ? "#e6e9ee" : css(colour(share));
    context.fillRect(x, y, inner, inner);
    context.strokeStyle = context.fillStyle = share > 0.6 ? "#10131a" : "#ffffff";
    context.lineWidth = 1.5;
    context.beginPath();
    if (ui.about.core.includes(name)) context.arc(x + inner / 2, y + inner / 2, inner / 7, 0, 7);
    context.fill();
    context.beginPath();
    if (ui.state.ablated.includes(name)) {
      context.moveTo(x + inner / 5, y + inner / 5);
      context.lineTo(x + inner * 0.8, y + inner * 0.8);
      context.moveTo(x + inner * 0.8, y + inner / 5);
      context.lineTo(x + inner / 5, y + inner * 0.8);
    }
    context.stroke();
    if (ui.state.heads.includes(name)) outline(context, [x, y, inner, inner], "#e8590c", []);
  }
  write(`${number(low)} to ${number(high)}; outlined: shown${ui.about.core.length ? "; dot: CoRe head" : ""}; cross: ablated`,
    side + 130, top + rows * size + 26, "13px system-ui, sans-serif");
  const { before, after } = ui.view;
  write(`answer: ${before.text} (${percent(before.probability)})`, 40, top + tall + 40, "18px system-ui, sans-serif");
  const done = [...(ui.state.ablated.length ? [`${ui.state.ablated.join(", ")} ablated (${ui.state.how})`] : []),
    ...(ui.state.regions.length ? [`${ui.state.regions.length} region(s) hidden`] : [])].join("; ");
  if (done) write(`with ${done}: ${after.text} (${percent(after.probability)})`, 40, top + tall + 70, "18px system-ui, sans-serif");
  return canvas;
}

function tokenName(ui) {
  const { tokens } = ui.prompt;
  return (tokens.find(({ position }) => position === ui.state.token) ?? tokens.at(-1)).text.trim();
}

export default { render };
