// Help: what the page shows, its keys, a tour at the first visit, and words explained where they stand.

/** Words of docs/glossary.md, in short. */
const WORDS = {
  "attention head": "One of the parallel parts of an attention layer: it looks at earlier positions and adds what it "
    + "reads there. L3H14 is head 14 of layer 3; both count from zero.",
  "visual token": "One position of the prompt that stands for a patch of the picture.",
  evidence: "The region of the picture that contains the answer, and the visual tokens that overlap it.",
  "CoRe heads": "The heads that scored highest over many samples. A ring marks them, whatever they do for this "
    + "question.",
  ablation: "Replacing what a head writes: by zero, or by its mean over samples. If the answer suffers, it was needed.",
  "attention knockout": "Forbidding heads to attend to a region, from the question on. What other patches know of it "
    + "remains.",
};

/** A text that explains a word under the pointer, with the keyboard, or when it is touched. */
const word = (name, text = name) => make("span", { className: "word", tabIndex: 0, "data-word": name }, text);

function explainWords(root) {
  const tip = make("div", { className: "tip", role: "tooltip", id: "corelens-tip", hidden: true });
  root.append(tip);
  const show = ({ target }) => {
    const shown = target.closest?.("[data-word]");
    tip.hidden = !shown;
    if (!shown) return;
    (shown.closest("dialog") ?? root).append(tip); // a dialog lies above everything else
    tip.textContent = WORDS[shown.dataset.word];
    shown.setAttribute("aria-describedby", tip.id);
    const { left, bottom } = shown.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${bottom + 4}px`;
  };
  for (const event of ["pointerover", "focusin", "pointerdown"]) root.addEventListener(event, show);
  const hide = ({ pointerType }) => { tip.hidden ||= pointerType !== "touch"; }; // a finger leaves at once
  for (const event of ["pointerleave", "focusout"]) root.addEventListener(event, hide);
}

const KEYS = [
  ["show a head; one more", "click; Ctrl-click, or “Add”", "arrows, Enter; +"],
  ["ablate a head", "Alt-click, or “Ablate”", "A"],
  ["read a patch", "point at it", "arrows"],
  ["hide a region", "Shift-drag, or “Knock out”", "Shift-Enter"],
  ["mark the evidence", "drag with “Mark evidence”", "Enter"],
  ["undo, redo", "buttons", "Ctrl-Z, Ctrl-Shift-Z"],
  ["this help", "?", "?"],
];

function helpDialog(startTour) {
  const row = (cell, texts) => make("tr", {}, ...texts.map((text) => make(cell, {}, text)));
  const dialog = make("dialog", { className: "help", "aria-label": "Help" },
    make("h2", {}, "What this page shows"),
    make("ol", {},
      make("li", {}, "Ask about a picture; the model's answer and its probability are on the right."),
      make("li", {}, "Every cell is an ", word("attention head"), ", coloured by the measure above; click one."),
      make("li", {}, "The picture shows which ", word("visual token", "patches"), " that head looks at from the chosen "
        + "word, as shares of all its attention; the white box is the ", word("evidence"), "."),
      make("li", {}, "A ring marks ", word("CoRe heads"), "; to see whether they matter here, take them away by ",
        word("ablation"), ", or hide a region by ", word("attention knockout"), "."),
      make("li", {}, "Two answers then stand side by side, and the code below repeats it all in Python.")),
    make("table", {}, make("thead", {}, row("th", ["to", "mouse", "keyboard"])),
      make("tbody", {}, ...KEYS.map((texts) => row("td", texts)))),
    make("div", { className: "bar" },
      button("Close", () => dialog.close(), { autofocus: true, title: "Close the help (Esc)" }),
      button("Show the tour", () => { dialog.close(); startTour(); }, { title: "Four steps around the page" })));
  return dialog;
}

// A cookie, since every start of corelens has another port, and other storage belongs to one port.
const SEEN = "corelens-tour=seen";

/** A tour of some sections, [section, text], in a card that covers no control for good. */
function tour(steps) {
  const card = make("div", { className: "tour", role: "dialog", "aria-label": "Tour", hidden: true });
  function show(number) {
    steps.forEach(([section], index) => section.classList.toggle("toured", index === number));
    card.hidden = number >= steps.length;
    if (card.hidden) {
      document.cookie = `${SEEN}; path=/; max-age=31536000; SameSite=Strict`;
      return;
    }
    const isLast = number === steps.length - 1;
    steps[number][0].scrollIntoView({ block: "nearest" });
    card.replaceChildren(span("quiet", `${number + 1} of ${steps.length}`), make("p", {}, steps[number][1]),
      make("div", { className: "bar" },
        button(isLast ? "Done" : "Next", () => show(number + 1), { title: isLast ? "End the tour" : "The next step" }),
        isLast ? null : button("Skip", () => show(steps.length), { title: "End the tour; “?” starts it again" })));
  }
  return { card, start: () => show(0), seen: () => document.cookie.includes(SEEN) };
}
