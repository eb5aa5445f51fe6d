// The view as one picture to save.

function figure(ui) {
  const { panels, question } = ui.prompt;
  const [focus] = ui.view.maps;
  const left = 40, right = 690, top = 96, side = 560;
  const columns = Math.ceil(Math.sqrt(panels.length)), panelSide = side / columns;
  const tallest = Math.max(...panels.map((panel) => panelSide * panel.height / panel.width), 0);
  const rows = ui.about.n_heads.length, size = Math.min(670 / Math.max(...ui.about.n_heads), 34);
  const height = top + 40 + Math.max(Math.ceil(panels.length / columns) * tallest, rows * size + 150);
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
  const queryToken = queryTokenOf(ui);
  const scaleSays = `strongest colour: ${share(topOfScale(ui, focus))} of its attention`;
  write(focus ? `${focus.head}, from “${queryToken.text.trim()}”; ${scaleSays}` : "", left, 76);
  write(ui.about.metrics[ui.view.metric], right, 76);
  const offsets = cellOffsets(panels);
  panels.forEach((panel, index) => {
    context.save();
    context.translate(left + (index % columns) * panelSide, top + Math.floor(index / columns) * tallest);
    const image = loadedImage(ui, panel.src);
    paint(ui, context, panelSide - 6, panel, image, focus, offsets[index], regionMarks(ui));
    context.restore();
  });
  const list = rankedHeads(ui), scale = scaleOf(ui, list);
  const { heads, core, ablated } = ui.about.colours;
  const stops = heads.light[scale.kind];
  const mark = (stroke, trace) => {
    for (const [style, thickness] of [["#ffffff", size / 5], [stroke, size / 12]]) { // visible on all values
      context.strokeStyle = style;
      context.lineWidth = thickness;
      context.beginPath();
      trace();
      context.stroke();
    }
  };
  for (const { name, layer, head, value } of list) {
    const x = right + head * size, y = top + (rows - 1 - layer) * size, inner = size - 2;
    const marks = headMarks(ui, name);
    if (!head) write(`L${layer}`, x - 10, y + size / 2 + 4, 12, "right");
    if (!layer) write(String(head), x + inner / 2, y + size + 10, 11, "center");
    context.fillStyle = value === null ? "#e6e9ee" : colour(stops, scale.place(value));
    context.fillRect(x, y, inner, inner);
    if (marks.core) mark(core, () => context.arc(x + inner / 2, y + inner / 2, inner / 3.4, 0, 2 * Math.PI));
    for (const [from, to] of marks.ablated ? [[0.2, 0.8], [0.8, 0.2]] : []) {
      mark(ablated, () => {
        context.moveTo(x + inner * from, y + inner * 0.2);
        context.lineTo(x + inner * to, y + inner * 0.8);
      });
    }
    if (marks.shown) outline(context, [x, y, inner, inner], "#1f2430", []);
  }
  const bottom = top + rows * size;
  const changes = [ui.state.ablated.length ? `${ui.state.ablated.join(", ")} ablated (${ui.state.how})` : "",
    ui.state.regions.length ? `regions hidden: ${ui.state.regions.length}` : ""].filter(Boolean).join("; ");
  const { before, after } = ui.view;
  const key = "outlined: shown; ring: CoRe head; cross: ablated";
  write(`${number(scale.low)} to ${scale.write(scale.highest)}; ${key}`, right, bottom + 36, 13);
  write(`answer: ${before.text} (${percent(before.probability)})`, right, bottom + 70, 20);
  if (changes) write(`with changes: ${after.text} (${percent(after.probability)})`, right, bottom + 100, 20);
  write(changes, right, bottom + 124, 13);
  return canvas;
}
