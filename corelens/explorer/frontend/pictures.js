// The pictures of a prompt: large under the head in focus, small under the others.

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
