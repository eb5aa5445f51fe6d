// The answers of the model, the changes, and the code that does the same.

function answersSection(ui) {
  const element = make("section", { className: "answers", "aria-live": "polite" });
  const card = (name, label, answer) => make("div", { className: `answer ${name}` },
    span("quiet", label), make("strong", {}, answer.text), span("", percent(answer.probability)));
  const bar = (name, value) => {
    const fill = span(`bar-of ${name}`);
    fill.style.setProperty("--share", value);
    return make("td", {}, fill, span("value", percent(value)));
  };
  function draw() {
    if (!ui.view.before) return element.replaceChildren();
    if (!ui.current) return;
    const { before, after, alternatives, state } = ui.view;
    const changed = state.ablated.length + state.regions.length > 0; // as it is shown
    const { expected } = ui.prompt;
    const plainAnswer = after.text === before.text ? "" : ` (${before.text}: ${percent(after.of_plain)})`;
    element.replaceChildren(
      make("div", { className: "pair" }, card("before", expected ? `answer (expected: ${expected})` : "answer", before),
        changed ? card("after", `with changes${plainAnswer}`, after) : ""),
      make("table", {}, make("caption", {}, "first token of the answer"), make("tbody", {},
        ...alternatives.map((row) => make("tr", {}, make("th", { scope: "row" }, row.text),
          bar("before", row.before), changed ? bar("after", row.after) : null)))));
  }
  return { element, draw };
}

function changesSection(ui) {
  const chips = make("div", { className: "chips" });
  const bar = make("div", { className: "bar" });
  const title = make("h2", {}, "Changes, from the question on");
  const hint = "None yet. Ablate heads in the map (Alt-click, or A), or hide parts of the picture (Shift-drag).";
  function draw() {
    const { ablated, regions, how, blind, heads } = ui.state;
    const ablateButton = (label, names) => button(label,
      () => ui.change({ ablated: [...new Set([...ablated, ...names])] }),
      { disabled: names.every((name) => ablated.includes(name)) });
    const replacements = { zero: "Zero", mean: "Mean" };
    const scopes = { all: "Hidden from all heads", chosen: "From those shown" };
    refill(bar,
      ablateButton("Ablate shown", heads),
      ui.about.core.length ? ablateButton("Ablate CoRe heads", ui.about.core) : null,
      choice("Replacement of ablated heads' outputs", replacements, how, (how) => ui.change({ how })),
      !regions.length ? null
        : choice("Heads that regions are hidden from", scopes, blind, (blind) => ui.change({ blind })),
      button("Clear", () => ui.change({ ablated: [], regions: [] }), { disabled: !ui.changed }));
    const chip = (label, patch) => button(`${label} ×`, () => ui.change(patch),
      { className: "chip", "aria-label": `Undo: ${label}` });
    const regionLabel = ({ box }) => (box ? `${box.map(Math.round).join(" ")} hidden` : "all hidden");
    refill(chips,
      ...ablated.map((name) => chip(`${name} ablated`, { ablated: without(ablated, name) })),
      ...regions.map((region) => chip(regionLabel(region), { regions: without(regions, region) })),
      ui.changed ? null : span("quiet", hint));
  }
  return { element: make("section", { className: "changes" }, title, bar, chips), draw };
}

function codeSection(ui) {
  const text = make("pre", { tabIndex: 0 });
  const copy = button("Copy", () => copyText(text.textContent, copy));
  const element = make("details", { className: "code" },
    make("summary", {}, "Python that reproduces this"), copy, text);
  return { element, draw() { text.textContent = ui.view.code ?? ""; } };
}
