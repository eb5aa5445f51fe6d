// Numbers as colours and as text.

/** A colour of CSS as red, green, blue and opacity. */
const parsed = (text) => text.startsWith("#")
  ? [...[1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16)), 1]
  : text.match(/[\d.]+/g).map(Number);

/** The colour at a place from 0 to 1 between stops, [place, colour]. */
function colour(stops, place, strength = 1) {
  const inside = Math.min(Math.max(place, 0), 1);
  const next = Math.max(stops.findIndex(([stop]) => stop >= inside), 1);
  const [[start, low], [end, high]] = [stops[next - 1], stops[next]].map(([stop, text]) => [stop, parsed(text)]);
  const between = (inside - start) / (end - start);
  const [red, green, blue, alpha] = low.map((value, index) => value + (high[index] - value) * between);
  return `rgba(${[red, green, blue].map(Math.round).join()},${+(alpha * strength).toFixed(3)})`;
}

const same = (first, second) => JSON.stringify(first) === JSON.stringify(second);
const without = (list, item) => list.filter((element) => !same(element, item));

function percent(probability) {
  return probability >= 0.0005 ? `${(100 * probability).toFixed(1)} %` : "< 0.1 %";
}

/** A share of attention, to two digits. */
function share(value) {
  const percent = 100 * value;
  if (percent === 0 || percent >= 10) return `${Number(percent.toFixed(percent > 99 ? 1 : 0))} %`;
  return percent < 0.01 ? "< 0.01 %" : `${percent.toPrecision(2)} %`;
}

/** A value of a metric with its unit. */
function measured(value, unit = "") {
  if (value !== null && unit.startsWith("%")) return share(value) + unit.slice(1);
  return value === null ? number(value) : `${number(value)} ${unit}`.trim();
}

function number(value) {
  if (value === null) return "no value";
  return Math.abs(value) >= 0.001 || value === 0 ? value.toPrecision(3) : value.toExponential(1);
}
