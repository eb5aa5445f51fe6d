// Pictures with attention drawn over them.

const cellCount = (grid) => (grid.x.length - 1) * (grid.y.length - 1);
const maxAttention = (map) => (map?.cells ?? []).reduce((most, value) => Math.max(most, value), 1e-9);

/** The index of each panel's first cell among the values of a map. */
function cellOffsets(panels) {
  let next = 0;
  return panels.map(({ grids }) => {
    const start = next;
    next += grids.reduce((sum, grid) => sum + cellCount(grid), 0);
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
    start += cellCount(grid);
  }
  return null;
}

/** The attention that gets the strongest colour: all of a head's, or, on its own scale, its highest. */
const topOfScale = (ui, map) => (ui.ownScale ? maxAttention(map) : 1);

/** The place of attention on the scale of colours: a root, since a head has many patches to share its attention. */
const brightness = (attention, top) => Math.sqrt(attention / top);

/** True if a panel shows a part of a region. */
const isOnPanel = ({ media, seconds }, panel) => media === panel.media
  && (!seconds || !panel.seconds || (seconds[0] < panel.seconds[1] && panel.seconds[0] < seconds[1]));

/** Draws a picture with attention over it: clear where there is none, and never opaque. */
function paint(ui, context, width, panel, image, map, start, marks) {
  const scale = width / panel.width;
  const onCanvas = (box) => {
    const wholePanel = [0, 0, panel.width, panel.height];
    const [left, top, right, bottom] = (box ?? wholePanel).map((edge) => Math.round(edge * scale));
    return [left, top, right - left, bottom - top]; // whole pixels, so that no seams show
  };
  context.imageSmoothingEnabled = image.naturalWidth >= width;
  context.drawImage(image, 0, 0, width, panel.height * scale);
  const top = topOfScale(ui, map);
  let index = start;
  for (const { x, y } of map ? panel.grids : []) {
    for (let row = 0; row + 1 < y.length; row++) {
      for (let column = 0; column + 1 < x.length; column++) {
        context.fillStyle = colour(ui.about.colours.attention, brightness(map.cells[index++], top), ui.strength);
        context.fillRect(...onCanvas([x[column], y[row], x[column + 1], y[row + 1]]));
      }
    }
  }
  const isInPanel = (region) => isOnPanel(region, panel);
  for (const { box } of marks.regions.filter(isInPanel)) {
    context.fillStyle = "rgba(16,18,24,0.88)";
    context.fillRect(...onCanvas(box));
    outline(context, onCanvas(box), "#ffffff", [4, 3]);
  }
  for (const { box } of marks.evidence.filter(isInPanel)) outline(context, onCanvas(box), "#ffffff", []);
  if (marks.cursor) outline(context, onCanvas(marks.cursor), "#7fd0ff", []);
}

/** Draws an outline that is visible on any picture. */
function outline(context, rectangle, stroke, dashes) {
  for (const [style, thickness, dash] of [["rgba(0,0,0,0.75)", 4.5, []], [stroke, 2, dashes]]) {
    context.strokeStyle = style;
    context.lineWidth = thickness;
    context.setLineDash(dash);
    context.strokeRect(...rectangle);
  }
  context.setLineDash([]);
}

/** A decoded picture, or null; draws everything again once it is loaded. */
function loadedImage(ui, src) {
  if (!ui.images.has(src)) {
    const image = new Image();
    image.onload = ui.draw;
    image.src = src;
    ui.images.set(src, image);
  }
  const image = ui.images.get(src);
  return image.complete && image.naturalWidth ? image : null;
}

const regionMarks = (ui) => ({ evidence: ui.state.evidence ?? ui.prompt.evidence, regions: ui.state.regions });
const boxBetween = ([x0, y0], [x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
