// Numbers as colours and as text.

const CIVIDIS = [
  "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
].map((hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16)));

/** A colour between 0 and 1: dark blue to yellow, even in lightness, also for eyes that mix red and green. */
function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const [low, high] = [CIVIDIS[Math.floor(place)], CIVIDIS[Math.ceil(place)]];
  return low.map((value, index) => Math.round(value + (high[index] - value) * (place - Math.floor(place))));
}

const css = (rgb, alpha = 1) => `rgba(${rgb.join(",")},${alpha})`;
const same = (first, second) => JSON.stringify(first) === JSON.stringify(second);
const without = (list, item) => list.filter((element) => !same(element, item));

function percent(probability) {
  return probability >= 0.0005 ? `${(100 * probability).toFixed(1)} %` : "< 0.1 %";
}

function number(value) {
  if (value === null) return "no value";
  return Math.abs(value) >= 0.001 || value === 0 ? value.toPrecision(3) : value.toExponential(1);
}
