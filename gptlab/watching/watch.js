// The page of `gptlab watch`: asks for what is new every two seconds, and draws it. No library, nothing from elsewhere.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5fbf", "#8a8a3c"];
const MAIN = ["val/loss", "train/loss"];
const SECOND = 2000; // milliseconds between looks
const SCROLLED = new Set(["attention", "lens", "attribution", "compare"]); // a column for each token: legible or whole
const SHARP = 2; // pixels of a picture for one of the page
const HIDDEN = new Set(["step", "tokens", "seconds", "flops"]);
const $ = (id) => document.getElementById(id);
const state = { runs: [], rows: [], samples: [], chosen: new Set(), views: [], asked: 0, step: null, steps: [], newest: null };

const get = async (path, words = {}) => {
  const answer = await fetch(`${path}?${new URLSearchParams(words)}`);
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
};
const json = async (...asked) => (await get(...asked)).json();
const chosen = () => [...state.chosen].sort((a, b) => a - b);
const pair = () => chosen().slice(0, 2);
const colour = (run) => COLOURS[run % COLOURS.length];
const short = (x) => (Math.abs(x) >= 1e4 || (x && Math.abs(x) < 1e-3) ? x.toExponential(1) : String(+x.toPrecision(4)));

function make(tag, attributes = {}, ...children) {
  const drawn = ["svg", "path", "line", "text", "g", "title", "circle"].includes(tag);
  const node = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

async function look() {
  try {
    const found = await json("/api/runs");
    const first = !state.runs.length;
    Object.assign(state, found);
    if (first) newestRuns().forEach((run) => state.chosen.add(run));
    await Promise.all(chosen().map(follow));
    $("state").textContent = `${state.runs.length} runs, ${state.runs.filter((r) => r.status === "running").length} running`;
    drawRuns(); drawViews(); drawMetrics(); drawCurves(); drawSamples(); drawSteps();
    followNewest();
  } catch (error) {
    $("state").textContent = `no answer: ${error.message}`;
  }
  setTimeout(look, SECOND);
}

// Those that run, then those that ran last.
function newestRuns() {
  const order = state.runs.map((run, i) => [run.status === "running", run.changed, i]);
  return order.sort((a, b) => b[0] - a[0] || b[1] - a[1]).slice(0, 6).map((each) => each[2]);
}

async function follow(run) {
  const held = state.rows[run] ?? { generation: 0, next: 0, rows: [] };
  const new_ = await json("/api/rows", { run, since: held.next, generation: held.generation });
  const again = new_.generation !== held.generation;
  state.rows[run] = { generation: new_.generation, next: new_.next, rows: again ? new_.rows : held.rows.concat(new_.rows) };
  state.samples[run] = (await json("/api/samples", { run })).samples;
}

function drawRuns() {
  const items = state.runs.map((run, i) => {
    const box = make("input", { type: "checkbox", "aria-label": run.name });
    box.checked = state.chosen.has(i);
    box.onchange = () => { box.checked ? state.chosen.add(i) : state.chosen.delete(i); refresh(); ask(); };
    const dot = make("i");
    dot.style.background = colour(i);
    const size = run.parameters ? `, ${(run.parameters / 1e6).toPrecision(3)}M` : "";
    const told = make("small", {}, `${run.status}, step ${run.step} of ${run.steps ?? "?"}${size}`, make("br"), run.parts);
    return make("li", {}, make("label", {}, box, dot, make("span", {}, run.name, told)));
  });
  const boxes = () => [...$("runs").querySelectorAll("input")], held = boxes().indexOf(document.activeElement);
  $("runs").replaceChildren(...items);
  boxes()[held]?.focus();
}

async function refresh() {
  await Promise.all(chosen().filter((run) => !state.rows[run]).map(follow));
  drawMetrics(); drawCurves(); drawSamples(); drawSteps();
}

function metrics() {
  const keys = new Set(chosen().flatMap((run) => (state.rows[run]?.rows ?? []).flatMap(Object.keys)));
  return [...keys].filter((key) => !HIDDEN.has(key)).sort((a, b) => MAIN.includes(b) - MAIN.includes(a) || a.localeCompare(b));
}

function drawMetrics() {
  const names = ["loss", ...metrics().filter((key) => !MAIN.includes(key))], select = $("metric"), now = select.value;
  if ([...select.options].map((o) => o.value).join() === names.join()) return;
  select.replaceChildren(...names.map((name) => make("option", {}, name)));
  select.value = names.includes(now) ? now : "loss";
}

function lines(keys) {
  return chosen().flatMap((run) => keys.map((key) => {
    const points = (state.rows[run]?.rows ?? []).filter((row) => row[key] != null).map((row) => [row[$("axis").value], row[key]]);
    return { run, key, points, faint: key === "train/loss" && keys.length > 1 };
  })).filter((line) => line.points.length);
}

function drawCurves() {
  const picked = $("metric").value || "loss";
  const levels = picked === "loss" && $("ruler").checked ? ruler() : [];
  $("curves").replaceChildren(plot(lines(picked === "loss" ? MAIN : [picked]), levels, $("curves").clientWidth, 320));
  const others = metrics().filter((key) => !MAIN.includes(key) && key !== picked);
  $("small").replaceChildren(...others.map((key) => make("figure", {}, make("figcaption", {}, key), plot(lines([key]), [], 300, 130))));
}

function ruler() {
  const rulers = new Set(chosen().map((run) => JSON.stringify(state.runs[run].ruler)).filter((ruler) => ruler !== "{}"));
  $("ruler").parentElement.title = rulers.size > 1 ? "none, since the chosen runs are of several texts" : "";
  const held = rulers.size === 1 ? Object.entries(JSON.parse([...rulers][0])) : [];
  return held.map(([order, loss]) => ({ loss, name: order === "0" ? "chance" : `${order}-gram` }));
}

function plot(drawn, levels, width, height) {
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": drawn.map((l) => l.key).join(", ") });
  const values = drawn.flatMap((line) => line.points);
  if (!values.length) return svg.append(make("text", { x: 10, y: 20 }, "nothing yet")), svg;
  const pad = { left: 52, right: levels.length ? 62 : 10, top: 8, bottom: 22 };
  const [x0, x1] = range(values.map((p) => p[0])), [low, high] = range(values.map((p) => p[1]));
  const next = Math.max(...levels.map((level) => level.loss).filter((loss) => loss <= low)); // the one to beat
  const near = levels.filter((level) => level.loss < high && level.loss >= Math.min(next, low));
  const y0 = Math.min(low, ...near.map((level) => level.loss)), y1 = high;
  const x = (v) => pad.left + ((v - x0) / (x1 - x0 || 1)) * (width - pad.left - pad.right);
  const y = (v) => height - pad.bottom - ((v - y0) / (y1 - y0 || 1)) * (height - pad.top - pad.bottom);
  for (const tick of ticks(y0, y1, height / 55)) {
    svg.append(make("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(tick), y2: y(tick) }));
    svg.append(make("text", { x: pad.left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(x0, x1, width / 130)) svg.append(make("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, short(tick)));
  let free = Infinity; // what is above a label; two that would overlap are one
  for (const level of near.sort((a, b) => a.loss - b.loss)) {
    const at = y(level.loss);
    svg.append(make("line", { class: "ruler", x1: pad.left, x2: width - pad.right, y1: at, y2: at }, make("title", {}, level.name)));
    if (at > free) continue;
    svg.append(make("text", { x: width - pad.right + 5, y: at + 4 }, level.name));
    free = at - 12;
  }
  for (const line of drawn) {
    const d = line.points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    const title = make("title", {}, `${state.runs[line.run].name}: ${line.key}, last ${short(line.points.at(-1)[1])}`);
    const end = line.points.at(-1);
    svg.append(make("path", { d, stroke: colour(line.run), "stroke-opacity": line.faint ? 0.35 : 1 }, title));
    svg.append(make("circle", { cx: x(end[0]), cy: y(end[1]), r: line.faint ? 0 : 2.6, fill: colour(line.run) }));
  }
  return svg;
}

const range = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);

function ticks(from, to, about) {
  const rough = (to - from) / Math.max(1, about), power = 10 ** Math.floor(Math.log10(rough || 1));
  const gap = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? power;
  const found = [];
  for (let tick = Math.ceil(from / gap) * gap; tick <= to + gap * 1e-9 && found.length < 50; tick += gap) found.push(tick);
  return found;
}

function drawSamples() {
  const share = $("when").value / 1000;
  const cards = pair().map((run) => {
    const held = state.samples[run] ?? [], sample = held[Math.round(share * (held.length - 1))];
    const head = make("h3", {}, `${state.runs[run].name}${sample ? `, step ${sample.step}` : ""}`);
    return make("div", {}, head, make("pre", {}, sample ? sample.text : "no sample yet"));
  });
  $("samples").replaceChildren(...cards);
}

function drawViews() {
  if ($("view").options.length) return;
  const all = [{ name: "tokens", title: "Tokens by their loss" }, ...state.views];
  $("view").replaceChildren(...all.map((view) => make("option", { value: view.name }, view.title)));
}

// The kept checkpoints of the pair, and behind them the newest, whichever that is. One that is removed while it is looked
// at keeps its place until it is left.
function drawSteps() {
  const kept = pair().flatMap((run) => state.runs[run].checkpoints), { step } = state, slider = $("step");
  state.steps = [...new Set(step === null ? kept : [...kept, step])].sort((a, b) => a - b);
  slider.max = state.steps.length;
  slider.value = step === null ? state.steps.length : state.steps.indexOf(step);
  $("at").textContent = step === null ? "the newest" : `step ${step}${kept.includes(step) ? "" : ", no longer kept"}`;
  slider.setAttribute("aria-valuetext", $("at").textContent);
}

function chooseStep() {
  state.step = state.steps[$("step").value] ?? null;
  drawSteps();
}

function followNewest() {
  const newest = pair().map((run) => `${run} ${state.runs[run].checkpoints.at(-1)}`).join();
  if (newest !== state.newest && state.step === null && state.runs.length) ask();
  state.newest = newest;
}

async function ask(event) {
  event?.preventDefault();
  const turn = ++state.asked, view = $("view").value, text = $("text").value, other = pair()[1] ?? "";
  const shown = view === "compare" ? pair().slice(0, 1) : pair(), asked = { text, step: state.step ?? "" };
  document.querySelectorAll(".place").forEach((label) => { label.hidden = view !== "attention"; });
  $("inside").classList.add("busy");
  const cards = await Promise.all(shown.map(async (run) => {
    const head = make("h3", {}, state.runs[run].name), of = (step) => head.append(`, step ${step}`);
    try {
      if (view === "tokens") {
        const { step, tokens } = await json("/api/tokens", { run, ...asked });
        return of(step), make("div", { class: "tokens" }, head, coloured(tokens));
      }
      const place = view === "attention" ? { layer: $("layer").value, head: $("head").value } : {};
      const words = { run, view, ...asked, ...place, ...(view === "compare" ? { other } : {}) };
      const answer = await get("/look", words);
      const image = make("img", { alt: `${$("view").selectedOptions[0].text} of ${state.runs[run].name}` });
      image.onload = () => fit(image, view);
      image.src = URL.createObjectURL(await answer.blob());
      return of(answer.headers.get("X-Step")), make("div", {}, head, make("div", { class: "scroll" }, whole(words, image)));
    } catch (error) {
      return make("div", {}, head, make("p", { class: "wrong" }, error.message));
    }
  }));
  if (turn !== state.asked) return;
  $("inside").replaceChildren(...cards);
  $("inside").classList.remove("busy");
}

function fit(image, view) {
  image.width = image.naturalWidth / SHARP;
  image.classList.add(SCROLLED.has(view) ? "long" : "whole");
  URL.revokeObjectURL(image.src);
}

const whole = (words, image) => make("a", { href: `/look?${new URLSearchParams(words)}`, target: "_blank", title: "open it whole" }, image);

function coloured(tokens) {
  const worst = Math.max(...tokens.map((token) => token.loss ?? 0), 1e-9);
  return make("pre", {}, ...tokens.map((token) => {
    const span = make("span", { title: token.loss === null ? "the first has none" : `${token.loss.toFixed(3)} nats` }, token.text);
    if (token.loss !== null) span.style.background = `rgb(213 94 0 / ${((0.75 * token.loss) / worst).toFixed(3)})`;
    return span;
  }));
}

for (const id of ["metric", "axis", "ruler"]) $(id).onchange = drawCurves;
addEventListener("resize", drawCurves);
$("when").oninput = drawSamples;
$("ask").onsubmit = ask;
for (const id of ["view", "layer", "head"]) $(id).onchange = ask;
$("step").oninput = chooseStep;
$("step").onchange = ask;
look();
