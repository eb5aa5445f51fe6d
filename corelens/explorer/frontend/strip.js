// The strip of a prompt with several pictures or frames: the attention on each, and the choice of the large one.

/** The share of the shown heads' attention that is on each panel: the mean, if there are several. */
function sharesOfPanels(panels, maps) {
  const starts = cellOffsets(panels);
  const sumOf = (values) => values.reduce((sum, value) => sum + value, 0);
  return starts.map((start, index) =>
    sumOf(maps.map(({ cells }) => sumOf(cells.slice(start, starts[index + 1])))) / (maps.length || 1));
}

function panelStrip(ui) {
  const element = make("div", { className: "strip", role: "group", "aria-label": "Pictures and frames" });
  let items = [], drawnFor = "";

  function choose(index) {
    ui.panel = index;
    ui.draw();
    items[index].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  element.addEventListener("keydown", (event) => {
    const next = items[items.indexOf(event.target) + (ARROWS[event.key]?.[0] ?? 0)];
    if (!next || next === event.target) return;
    event.preventDefault();
    next.click();
    next.focus();
  });

  function draw() {
    const { panels, key } = ui.prompt, { maps } = ui.view;
    const shares = sharesOfPanels(panels, maps), highest = Math.max(...shares, 1e-9);
    if (drawnFor !== key) {
      drawnFor = key;
      ui.panel = Math.max(shares.indexOf(highest), 0);
      items = panels.map(({ src, label }, index) =>
        button(make("img", { src, alt: label }), () => choose(index), { "data-panel": index }));
      for (const item of items) item.append(span("mass"), span("share"));
      element.replaceChildren(...items);
    }
    element.hidden = panels.length < 2;
    const heads = maps.length > 1 ? `the attention of ${maps.length} heads, on average` : `${maps[0]?.head}'s attention`;
    items.forEach((item, index) => {
      const { label } = panels[index], says = maps.length ? `${label}: ${share(shares[index])} of ${heads}` : label;
      const hasEvidence = regionMarks(ui).evidence.some((region) => isOnPanel(region, panels[index]));
      item.title = hasEvidence ? `${says}; with evidence` : says;
      item.setAttribute("aria-label", item.title);
      item.setAttribute("aria-pressed", String(index === ui.panel));
      item.tabIndex = index === ui.panel ? 0 : -1; // arrows lead to the others
      item.classList.toggle("evidence", hasEvidence);
      item.style.setProperty("--share", shares[index] / highest);
      item.lastChild.textContent = maps.length ? share(shares[index]) : "";
    });
  }
  return { element, draw };
}
