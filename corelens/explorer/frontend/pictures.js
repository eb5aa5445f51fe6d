// The pictures of a prompt: one is large under the head in focus, and small under the others; a strip has all.

const SCALES = {
  one: ["One scale", "The same colour is the same share of attention, for all heads and questions"],
  own: ["Own scale", "The strongest colour is the head's own highest attention, however little that is"],
};
const TOOL_HINTS = {
  evidence: "Drag over the part of the picture that holds the answer, or click a patch.",
  "knock out": "Drag over a part of the picture to hide it from the heads, or click a patch; again to open it.",
};

function picturesSection(ui) {
  const strip = panelStrip(ui);
  const large = make("div", { className: "panels" });
  const small = make("div", { className: "others" });
  const bar = make("div", { className: "bar" });
  const readout = make("p", { className: "readout", "aria-live": "polite" });
  const scale = make("div", { className: "legend" });
  const pointer = { panel: null, at: null, drag: null };
  let canvases = []; // { canvas, map: its number }
  let drawnLayout = { large: "", small: "" };

  function readoutText() {
    if (!ui.current) return ui.view.note ?? "";
    const [focus] = ui.view.maps;
    if (!focus) return "Choose a head to see what it attends to.";
    const cell = pointer.panel && cellAt(pointer.panel, ...pointer.at);
    if (cell) {
      const [left, top, right, bottom] = cell.box.map(Math.round);
      const value = focus.cells[cellOffsets(ui.prompt.panels)[ui.prompt.panels.indexOf(pointer.panel)] + cell.index];
      const where = `row ${cell.row}, column ${cell.column} · pixels ${left} to ${right}, ${top} to ${bottom}`;
      return `${where} · ${share(value)} of ${focus.head}'s attention`;
    }
    if (TOOL_HINTS[ui.tool]) return TOOL_HINTS[ui.tool];
    const evidence = focus.on_evidence === null ? "" : `, ${share(focus.on_evidence)} on the evidence`;
    const most = focus.cells.length ? `; at most ${share(maxAttention(focus))} on a patch` : `. ${ui.prompt.no_boxes}`;
    return `${focus.head}: ${share(focus.on_pictures)} of this head's attention is on pictures${evidence}${most}`;
  }

  function repaint() {
    readout.textContent = readoutText();
    if (!ui.current) return;
    const panel = ui.prompt.panels[ui.panel], image = panel && loadedImage(ui, panel.src);
    if (!image) return;
    const start = cellOffsets(ui.prompt.panels)[ui.panel];
    for (const { canvas, map } of canvases) {
      const isPointedAt = map === 0 && pointer.panel === panel;
      const isDragged = pointer.drag && pointer.drag.tool !== "read";
      const cursor = !isPointedAt ? null
        : isDragged ? boxBetween(pointer.drag.from, pointer.at) : cellAt(panel, ...pointer.at)?.box;
      const width = Math.round(canvas.clientWidth || 400), ratio = window.devicePixelRatio || 1;
      canvas.width = width * ratio;
      canvas.height = Math.round(width * panel.height / panel.width) * ratio;
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      const marks = { ...regionMarks(ui), cursor };
      paint(ui, context, width, panel, image, ui.view.maps[map], start, marks);
    }
  }

  /** The scale of colours: one for all heads, unless a switch says otherwise. */
  function drawScale() {
    const [focus] = ui.view.maps ?? [];
    const top = topOfScale(ui, focus);
    const ramp = span("ramp");
    const stops = Array.from({ length: 9 }, (_, index) => colour(ui.about.colours.attention, index / 8, ui.strength));
    ramp.style.background = `linear-gradient(90deg, ${stops.join()})`;
    const says = ui.ownScale ? `: ${focus?.head ?? "each head"}'s highest; colours of heads cannot be compared`
      : " of a head's attention, on one patch";
    refill(scale, choice("Scale of colours", SCALES, ui.ownScale ? "own" : "one",
      (scale) => { ui.ownScale = scale === "own"; ui.draw(); }), "0", ramp, `${share(top)}${says}`);
  }

  /** Makes canvases where others are needed; those that stay keep the focus. */
  function layOut() {
    strip.draw();
    const { panels, key } = ui.prompt, panel = panels[ui.panel];
    const otherMaps = ui.view.maps.slice(1);
    const canvasOf = (map) => {
      const canvas = make("canvas", { role: "img" });
      canvases.push({ canvas, map });
      return canvas;
    };
    const largeKey = `${key} ${ui.panel}`;
    if (drawnLayout.large !== largeKey) {
      drawnLayout = { large: largeKey, small: "" };
      canvases = [];
      pointer.panel = null;
      large.replaceChildren();
      if (panel) {
        const canvas = canvasOf(0);
        canvas.tabIndex = 0;
        listen(ui, canvas, panel, pointer, repaint);
        large.append(make("figure", {}, canvas, panel.label ? make("figcaption", {}, panel.label) : null));
      }
    }
    const smallKey = JSON.stringify(otherMaps.map((map) => [map.head, maxAttention(map)]));
    if (drawnLayout.small !== smallKey) {
      drawnLayout.small = smallKey;
      canvases = canvases.filter(({ map }) => map === 0);
      small.replaceChildren(...otherMaps.map((map, index) => make("figure", {},
        button(panel ? canvasOf(index + 1) : "",
          () => ui.change({ heads: [map.head, ...without(ui.state.heads, map.head)] }),
          { title: `Bring ${map.head} to the front`, "aria-label": `Bring ${map.head} to the front` }),
        make("figcaption", {}, `${map.head}: ${share(map.on_pictures)}`))));
    }
    const head = ui.view.maps[0]?.head ?? "no head";
    for (const { canvas } of canvases) {
      const name = panel.label || "picture";
      canvas.setAttribute("aria-label", `${name}, attention of ${head}; arrow keys read patches`);
    }
  }

  const element = make("section", { className: "pictures" }, bar, strip.element, large, scale, readout, small);

  function draw() {
    element.classList.toggle("using", ui.tool !== "read");
    const tools = {
      read: ["Read", "A click changes nothing; point at a patch to read its attention"],
      evidence: ["Mark evidence", "Drag over the part that holds the answer"],
      "knock out": ["Knock out", "Drag over a part to hide it from the heads"],
    };
    const phases = {
      before: ["Before", "Heads and picture without the changes"],
      after: ["With changes", "Heads and picture with the changes"],
    };
    const strength = make("input", {
      type: "range", min: 0, max: 1, step: 0.05, value: ui.strength, title: "How strongly attention covers the picture",
      oninput: () => { ui.strength = Number(strength.value); drawScale(); repaint(); },
    });
    refill(bar,
      choice("What a click on the picture does", tools, ui.tool, (tool) => { ui.tool = tool; ui.draw(); }),
      ui.changed ? choice("Phase", phases, ui.state.moment, (moment) => ui.change({ moment })) : null,
      make("label", { className: "strength" }, "overlay", strength));
    if (ui.current) layOut();
    else if (!ui.prompt) {
      drawnLayout = { large: "", small: "" };
      canvases = [];
      strip.element.hidden = true;
      large.replaceChildren();
      small.replaceChildren();
    }
    drawScale();
    repaint();
  }
  new ResizeObserver(() => {
    element.style.setProperty("--above", `${large.offsetTop}px`); // of a narrow page, which keeps the rest in view
    repaint();
  }).observe(large);
  return { element, draw };
}
