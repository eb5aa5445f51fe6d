// The explorer: its sections, and the state that they share.
//
// A few values are synchronised with Python: `state` holds the user's choices, and is written here alone; `prompt` and
// `view` are what Python computes for it. Nothing here computes a number about the model.

function render({ model, el }) {
  const about = model.get("about");
  const ui = {
    model, about,
    tool: "read", // applied by a click on a picture
    clicking: "show", // applied by a click on a head
    strength: 1, // of the overlay
    ownScale: false, // of every map
    panel: 0, // number of the picture or frame that is large
    files: {}, // uploaded pictures
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
      const keys = state.pictures.filter((key) => ui.files[key]);
      if (keys.length) model.set("uploads", Object.fromEntries(keys.map((key) => [key, ui.files[key]])));
      ui.notify("");
      model.set("state", state);
      root.setAttribute("aria-busy", "true");
      model.save_changes();
    },
    step(from, to) {
      if (!from.length) return;
      to.push(ui.state);
      ui.put(from.pop());
    },
    showError(error, ...controls) {
      refill(alert, error, " ", ...controls);
      alert.hidden = !error;
    },
    /** Says something until the next choice. */
    notify(text, ...controls) {
      refill(notice, text, " ", ...controls);
      notice.hidden = !text;
    },
    savePage: () => save("corelens.html", stillPage(ui), "text/html"),
    use(tool) {
      ui.tool = tool;
      draw();
      pictures.scrollIntoView({ block: "nearest" });
      pictures.querySelector("canvas").focus({ preventScroll: true });
    },
    toggleAblated(name) {
      const { ablated } = ui.state;
      ui.change({ ablated: ablated.includes(name) ? without(ablated, name) : [...ablated, name] });
    },
    showHead(name, add) {
      const shown = ui.state.heads;
      if (!add) ui.change({ heads: [name] });
      else if (shown.includes(name)) ui.change({ heads: without(shown, name) });
      else if (shown.length < about.most_maps) ui.change({ heads: [name, ...shown] });
      else ui.notify(`At most ${about.most_maps} heads are shown at a time; take one away first.`);
    },
    draw,
  };
  const sections = [headerSection, gallerySection, questionSection, picturesSection, headsSection, answersSection,
    changesSection, codeSection].map((section) => section(ui));
  const [header, gallery, question, pictures, heads, answers, changes, code] = sections.map(({ element }) => element);
  const alert = make("p", { className: "error", role: "alert", hidden: true });
  const notice = make("p", { className: "note notice", role: "status", hidden: true });
  const root = make("div", { className: "corelens", tabIndex: -1 }, header, alert, notice, gallery,
    make("div", { className: "columns" },
      make("div", { className: "column" }, question, pictures),
      make("div", { className: "column" }, heads, answers, changes)),
    code);
  for (const mark of ["core", "ablated"]) root.style.setProperty(`--${mark}`, about.colours[mark]);
  root.style.setProperty("--attention", colour(about.colours.attention, 1, 9)); // opaque
  root.classList.toggle("still", Boolean(model.get("still")));
  const openHelp = (event) => {
    if (event.key !== "?" || event.target.matches("input, select") || model.get("still")) return;
    event.preventDefault();
    ui.help.showModal();
  };
  if (model.get("linked")) document.addEventListener("keydown", openHelp); // a page of its own
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // Jupyter's, which would delete the cell on "d d"
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    openHelp(event);
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && event.target.tagName !== "INPUT") {
      event.preventDefault();
      if (event.shiftKey) ui.step(ui.future, ui.past);
      else ui.step(ui.past, ui.future);
    }
  });
  acceptDrops(root, ui);
  explainWords(root);
  const { card, start, seen } = tour([
    [question, "Ask about the picture. Below are the words that the model reads: choose the one that heads look from."],
    [heads, "Every cell is an attention head, coloured by the measure above. Click one, or type its name."],
    [pictures, "Here is where that head looks, as shares of all its attention. The white box holds the answer."],
    [changes, "Take heads away, or hide parts of the picture: the answer above shows what is lost."],
  ]);
  ui.help = helpDialog(start);
  root.append(ui.help, card);
  el.replaceChildren(root);

  function settled() {
    root.setAttribute("aria-busy", "false");
    draw();
  }
  function draw() {
    ui.showError(model.get("error"), model.get("ended") ? savePageButton(ui) : null);
    // Prompt and view arrive one after the other.
    ui.current = Boolean(ui.prompt) && ui.view.prompt === ui.prompt.key;
    for (const section of sections) section.draw();
  }
  const listeners = { "change:state": draw, "change:view": settled, "change:error": settled };
  for (const [event, listener] of Object.entries(listeners)) model.on(event, listener);
  draw();
  if (model.get("linked") && !seen()) start();
  return () => {
    for (const [event, listener] of Object.entries(listeners)) model.off(event, listener);
  };
}

export default { render };
