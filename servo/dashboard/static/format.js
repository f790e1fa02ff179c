// Numbers as texts. The units are those of servoctl.

/** The text for a value that is not known. */
export const NONE = "–";

const MIB = 1 << 20;
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** A count: 12,345. */
export function count(value) {
  return known(value) ? WHOLE.format(value) : NONE;
}

/** A rate, with one decimal if it is below 10. */
export function rate(value) {
  if (!known(value)) return NONE;
  return value < 10 ? value.toFixed(1).replace(/\.0$/, "") : WHOLE.format(value);
}

/** A latency: 0.42 ms, 3.1 ms, 42 ms, 1.2 s. */
export function latency(seconds) {
  if (!known(seconds)) return NONE;
  const ms = seconds * 1000;
  if (ms === 0) return "0 ms";
  if (ms < 10) return `${Number(ms.toPrecision(2))} ms`;
  if (ms < 1000) return `${ms.toFixed(0)} ms`;
  return seconds < 10 ? `${Number(seconds.toFixed(1))} s` : duration(seconds);
}

/** A duration: 340 ms, 2.1 s, 42 s, 12 min, 5 h 10 min, 3 d 4 h. */
export function duration(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A duration in whole seconds, for one that counts up on the screen. */
export function wholeSeconds(seconds) {
  return seconds < 120 ? `${Math.floor(seconds)} s` : duration(seconds);
}

/** A share of 1 as per cent. */
export function percent(share) {
  return known(share) ? `${Math.round(share * 100)}%` : NONE;
}

/** A size in bytes as MB of 1,048,576 bytes, above 10,000 of them as GB. */
export function bytes(size) {
  if (!known(size)) return NONE;
  const mib = size / MIB;
  return mib < 10_000 ? `${WHOLE.format(mib)} MB` : `${(mib / 1024).toFixed(1)} GB`;
}

const two = (number) => String(number).padStart(2, "0");

/** A time of day in the browser's time zone: 14:03. */
export function clock(time) {
  const date = new Date(time * 1000);
  return `${two(date.getHours())}:${two(date.getMinutes())}`;
}

/** A time of day with seconds: 14:03:09. */
export function clockSeconds(time) {
  return `${clock(time)}:${two(new Date(time * 1000).getSeconds())}`;
}

/** The date if it is not today's: "28 Nov ", else "". */
export function dayBefore(time, now) {
  const date = new Date(time * 1000);
  if (date.toDateString() === new Date(now * 1000).toDateString()) return "";
  return `${date.toLocaleDateString("en", { day: "numeric", month: "short" })} `;
}
