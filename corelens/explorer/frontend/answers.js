// The answers of the model, the changes, and the code that does the same.

/** The token whose attention is shown, of the prompt or of the answer. */
function queryTokenOf(ui) {
  const answer = ui.changed && ui.state.moment === "after" ? ui.view.after : ui.view.before;
  const ofAnswer = answer.tokens.map(({ text }, index) => ({ text, position: answer.tokens[index + 1]?.position }));
  return [...ui.prompt.tokens, ...ofAnswer].find(({ position }) => position === ui.view.query);
}

function answersSection(ui) {
  const element = make("section", { className: "answers", "aria-live": "polite" });
  const card = (name, label, answer) => make("div", { className: `answer ${name}` },
    span("quiet", label), make("strong", {}, answer.text), span("", percent(answer.probability)),
    answer.tokens.length > 1 ? tokensOf(name, answer) : null);
  /** The tokens of an answer: what heads looked at when each was produced is shown by a click on it. */
  const tokensOf = (name, answer) => make("div", {
    className: "tokens", role: "group", "aria-label": "Tokens of the answer",
  }, ...answer.tokens.map(({ text, position }, index) => button(text.trim() || "␣", () => ui.change({
      token: index ? position : null, moment: ui.changed ? name : ui.state.moment,
    }), {
      title: "Show what heads looked at when this was produced", "data-produced-at": position,
      "aria-pressed": String(position === ui.view.query && (!ui.changed || name === ui.state.moment)),
    })));
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
    // A narrow page keeps the answers in view, and not the table.
    element.style.setProperty("--below", `${element.querySelector("table").offsetHeight + 14}px`);
  }
  return { element, draw };
}

function changesSection(ui) {
  const chips = make("div", { className: "chips" });
  const bar = make("div", { className: "bar" });
  const title = make("h2", {}, "Changes, from the question on");
  function draw() {
    const { ablated, regions, how, blind, heads } = ui.state;
    const ablateButton = (label, names, title) => button(label,
      () => ui.change({ ablated: [...new Set([...ablated, ...names])] }),
      { title, disabled: names.every((name) => ablated.includes(name)) });
    const replacements = {
      zero: ["Zero", "Ablated heads write nothing"],
      mean: ["Mean", "Ablated heads write their mean over the gallery"],
    };
    const scopes = {
      all: ["Hidden from all heads", "No head attends to hidden regions"],
      chosen: ["From those shown", "Only the heads that are shown do not attend to hidden regions"],
    };
    refill(bar,
      ablateButton("Ablate shown", heads, "Ablate the heads whose attention is shown"),
      ui.about.core.length ? ablateButton("Ablate CoRe heads", ui.about.core, "Ablate the heads with a ring")
        : null,
      choice("Replacement of ablated heads' outputs", replacements, how, (how) => ui.change({ how })),
      !regions.length ? null
        : choice("Heads that regions are hidden from", scopes, blind, (blind) => ui.change({ blind })),
      button("Clear", () => ui.change({ ablated: [], regions: [] }), {
        title: "Take all changes back", disabled: !ui.changed,
      }));
    const chip = (label, patch) => button(`${label} ×`, () => ui.change(patch),
      { className: "chip", title: "Take this change back", "aria-label": `Undo: ${label}` });
    const regionLabel = ({ box }) => (box ? `${box.map(Math.round).join(" ")} hidden` : "all hidden");
    const hint = span("quiet", "None yet. Take heads away by ", word("ablation"),
      " (Alt-click, or A), or hide parts of the picture by ", word("attention knockout"), " (Shift-drag).");
    refill(chips,
      ...ablated.map((name) => chip(`${name} ablated`, { ablated: without(ablated, name) })),
      ...regions.map((region) => chip(regionLabel(region), { regions: without(regions, region) })),
      ui.changed ? null : hint);
  }
  return { element: make("section", { className: "changes" }, title, bar, chips), draw };
}

function codeSection(ui) {
  const text = make("pre", { tabIndex: 0 });
  const copy = button("Copy", () => copyText(text.textContent, copy), { title: "Copy the code" });
  const element = make("details", { className: "code" },
    make("summary", { title: "Show or hide the code" }, "Python that reproduces this"), copy, text);
  return { element, draw() { text.textContent = ui.view.code ?? ""; } };
}
