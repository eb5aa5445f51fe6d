// The whole: the parts, and the state that they share.
//
// All there is to say is in a few values that are synchronised with Python: `state` is what the user has chosen, and is
// written here alone; `prompt` and `view` are what Python shows for it. Nothing here computes a number about the model.

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

export default { render };
