"""The canvas: where one draws with mouse, pen or finger.

Gradio's own editor needs WebGL and a click on a tool before the first line, and reads pictures of
any size; this one is white paper and a pen.
"""

from __future__ import annotations

from sketchfusion_plugins.demo.pictures import CANVAS

PEN = 9
# While a line is being drawn, the page answers this often; it always does at its end.
MILLISECONDS = 500

HTML = f"""
<div class="paper">
  <canvas width="{CANVAS}" height="{CANVAS}" role="img"
    aria-label="Paper to draw on with mouse, pen or finger"></canvas>
  <span class="hint">Draw here</span>
</div>
<div class="tools">
  <button type="button" class="undo">Undo</button>
  <button type="button" class="clear">Clear</button>
</div>
"""

CSS = """
.paper { position: relative; }
canvas { width: 100%; aspect-ratio: 1; background: white; border: 1px solid #9ca3af;
  border-radius: 8px; touch-action: none; cursor: crosshair; display: block; }
/* The script shows it, once lines that are drawn are kept. */
.hint { position: absolute; inset: 0; display: none; place-items: center; pointer-events: none;
  color: #9ca3af; font-size: 1.4rem; }
.tools { display: flex; gap: 8px; margin-top: 8px; }
.tools button { flex: 1; margin: 0; padding: 8px; border: 1px solid #d1d5db; border-radius: 8px;
  background: #f3f4f6; color: #111827; cursor: pointer; }
.tools button:hover { background: #e5e7eb; }
"""

SCRIPT = f"""
const canvas = element.querySelector("canvas");
const hint = element.querySelector(".hint");
const paper = canvas.getContext("2d");
let strokes = [], picture = null, stroke = null, sent = 0, own = null;

function line(stroke) {{
  paper.lineWidth = {PEN};
  paper.lineCap = paper.lineJoin = "round";
  paper.beginPath();
  paper.moveTo(...stroke[0]);
  for (const point of stroke) paper.lineTo(...point);
  paper.stroke();
}}
function redraw() {{
  paper.fillStyle = "white";
  paper.fillRect(0, 0, canvas.width, canvas.height);
  if (picture) paper.drawImage(picture, 0, 0, canvas.width, canvas.height);
  strokes.forEach(line);
  hint.style.display = picture || strokes.length ? "none" : "grid";
}}
function send() {{
  sent = Date.now();
  own = canvas.toDataURL("image/png");
  props.value = own;
  trigger("input");
}}
function place(event) {{
  const box = canvas.getBoundingClientRect();
  return [
    (event.clientX - box.left) / box.width * canvas.width,
    (event.clientY - box.top) / box.height * canvas.height,
  ];
}}
canvas.addEventListener("pointerdown", (event) => {{
  if (event.button) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  stroke = [place(event)];
  strokes.push(stroke);
  // The answer to its end would wait for one to its beginning.
  sent = Date.now();
  redraw();
}});
canvas.addEventListener("pointermove", (event) => {{
  if (!stroke) return;
  for (const each of event.getCoalescedEvents?.() ?? [event]) stroke.push(place(each));
  redraw();
  if (Date.now() - sent > {MILLISECONDS}) send();
}});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => {{
  if (!stroke) return;
  stroke = null;
  send();
}});
element.querySelector(".undo").addEventListener("click", () => {{
  if (strokes.length) strokes.pop(); else picture = null;
  redraw();
  send();
}});
element.querySelector(".clear").addEventListener("click", () => {{
  strokes = [];
  picture = null;
  redraw();
  send();
}});
watch("value", () => {{
  if (!props.value || props.value === own) return;
  const loaded = new Image();
  loaded.onload = () => {{ strokes = []; picture = loaded; redraw(); }};
  loaded.src = own = props.value;
}});
redraw();
"""
