"""Style sheet and jinja2 template of report.html; report.py fills in the content."""

STYLE = """\
:root {
  --page: #fff; --card: #f6f6f4; --ink: #1c1c1a; --soft: #61615c; --line: #dcdcd7;
  --mark: #fdf3d8;
  --s0: #8a8a84; --s1: #2a78d6; --s2: #e2622b; --s3: #149a6b; --s4: #6a56c9; --s5: #b8860b;
}
@media (prefers-color-scheme: dark) { :root {
  --page: #171716; --card: #222220; --ink: #eeeeea; --soft: #a6a69f; --line: #3b3b38;
  --mark: #3d3520;
  --s0: #96968f; --s1: #4a93ea; --s2: #ee7a45; --s3: #2cb583; --s4: #9a8bee; --s5: #d9a832;
} }
.s0 { --c: var(--s0) } .s1 { --c: var(--s1) } .s2 { --c: var(--s2) }
.s3 { --c: var(--s3) } .s4 { --c: var(--s4) } .s5 { --c: var(--s5) }
body { margin: 0 auto; padding: 1.5rem; max-width: 84rem;
  background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
.big { font-size: 1.25rem; margin: 1rem 0 0 }
.big b { font-size: 2.2rem; font-weight: 650 }
.note { color: var(--soft); max-width: 60rem; margin: .4rem 0 1rem; font-size: .92rem }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .6rem 1.5rem;
  background: var(--card); padding: .8rem 1rem; border-radius: 6px }
dt { color: var(--soft); font-size: .82rem }
dd { margin: 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .9rem; text-align: right; border-bottom: 1px solid var(--line);
  font-weight: 400 }
th:first-child { text-align: left }
tbody th { white-space: nowrap }
thead th { color: var(--soft); font-size: .85rem; white-space: pre-line;
  vertical-align: bottom }
.marked { background: var(--mark); font-weight: 650 }
.key { display: inline-flex; align-items: center; gap: .35rem; margin-right: 1rem;
  font-size: .9rem }
.key i { flex: none; width: .8rem; height: .8rem; border-radius: 2px; background: var(--c);
  box-shadow: 0 0 0 1px var(--line) }
.classes { columns: 24rem; column-gap: 2.5rem; margin-top: .8rem }
.class { display: grid; grid-template-columns: 8.5rem 1fr; align-items: center; padding: .3rem 0;
  break-inside: avoid }
.bar { display: flex; gap: .4rem; align-items: center; font-size: .78rem; line-height: 1.05rem }
.bar i { height: .6rem; width: calc(var(--iou) * .82%); background: var(--c);
  border-radius: 0 3px 3px 0 }
.bar b { font-weight: 400; font-variant-numeric: tabular-nums }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1.2rem;
  margin-top: .8rem }
figure { margin: 0 }
figcaption .key { font-size: .82rem; color: var(--soft) }
svg { width: 100%; display: block }
svg text { font-size: 11px; fill: var(--soft) }
svg path { stroke: var(--line) }
polyline { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round;
  stroke-linecap: round }
.panels { width: 100% }
.panels td, .panels th { border: 0; padding: .2rem; text-align: left }
.panels img { width: 100%; min-width: 9rem; display: block }
pre { background: var(--card); padding: 1rem; border-radius: 6px; overflow-x: auto;
  font-size: .82rem }
summary { cursor: pointer }
"""

PAGE = """\
{% macro key(class, text, style="") -%}
<span class="key"><i class="{{ class }}" style="{{ style }}"></i>{{ text }}</span>
{%- endmacro %}
{% macro class_key(class) %}{{ key("", class, "background: rgb" ~ palette[class]) }}{% endmacro %}
{% macro pictures(panels, folder) %}
<div class="scroll"><table class="panels"><thead><tr>
{% for kind in panels.kinds %}
<th scope="col">{{ title(kind) }}</th>
{% endfor %}
</tr></thead><tbody>
{% for image, uris in panels.images.items() %}
<tr>
{% for kind in panels.kinds %}
<td>
{% if uris.get(kind) %}
{% set caption = image ~ ": " ~ title(kind) %}
<img src="{{ uris[kind] }}" alt="{{ caption }}" title="{{ caption }}">
{% endif %}
</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% if panels.left_out %}
<p class="note">{{ panels.left_out }} more in the folder {{ folder }}.</p>
{% endif %}
{% endmacro %}
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>{{ name }} – diga_hpc</title>
<style>{{ style | safe }}</style></head><body>
<h1>{{ name }}</h1>

{% if results.last %}
{% set last, gain = results.last, results.gain(results.last) %}
<p class="big"><b>{{ "%.2f" % results.get(last) }} %</b> mIoU
{%- for key in results.protocols if results.get(last, key) is not none -%}
, {{ "%.2f" % results.get(last, key) }} % {{ key | replace("miou_", "mIoU ") }}
{%- endfor %} after {{ title(last) }}
{%- if gain is not none -%}
, {{ "%+.2f" % gain }} against source only
{%- endif %}</p>
{% if results.sets | length > 1 %}
<p>Mean over
{% for of in results.sets %}
{{ of }} {{ "%.2f" % results.get(last, of=of) }}{{ "" if loop.last else "," }}
{% endfor %}
</p>
{% endif %}
<p class="note">This is the result: the last iterate of the student, with its running statistics, on
{{ results.get(last, "images") or "the" }} validation images. No iterate was chosen by validation
labels. It is one run with one seed: differences below the spread between seeds mean nothing.
{% if last != last_stage %}
<strong>Not finished: {{ title(last_stage) }} has not been evaluated.</strong>
{% endif %}</p>
{% else %}
<p class="note">Results: {{ not_measured }}.</p>
{% endif %}
<dl>
{% for name, text in facts.items() %}
<div><dt>{{ name }}</dt><dd>{{ text }}</dd></div>
{% endfor %}
</dl>

{% if results.stages %}
<h2>Results</h2>
<div class="scroll"><table><thead><tr>
{% for head in results.heads %}
<th scope="col" class="{{ "marked" if head == results.marked }}">{{ head }}</th>
{% endfor %}
</tr></thead><tbody>
{% for stage, of, texts in results.lines %}
<tr><th scope="row">{{ title(stage) }}</th>
{% if of %}
<th scope="row">{{ of }}</th>
{% endif %}
{% for text in texts %}
{% set head = results.heads[results.heads | length - texts | length + loop.index0] %}
<td class="{{ "marked" if head == results.marked }}">{{ text }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
<p class="note">mIoU in percent, over the classes that occur in the truth or are predicted (as
cityscapesScripts and mmsegmentation compute it); <em>present</em>, where it differs: over those
that occur in the truth. – is not measured. <em>running</em>: the normalisation statistics of
training, as in the result. <em>adapted</em>: statistics re-estimated on the target's training
images (AdaBN), for comparison. The teacher is the moving average of the student. The columns to the
right of the networks are of the student with running statistics.</p>
{% endif %}

{% if results.last %}
{% for of in results.sets %}
<h2>IoU of each class{{ " on " ~ of if of }}</h2>
{% for stage in results.stages %}
{{ key(color(stage), title(stage)) }}
{% endfor %}
<div class="classes">
{% for class in palette %}
<div class="class">{{ class_key(class) }}<div>
{% for stage in results.stages if results.get(stage, "iou", of=of) %}
{% set value = results.get(stage, "iou", of=of).get(class) %}
<div class="bar {{ color(stage) }}" title="{{ title(stage) }}">
<i style="--iou: {{ value or 0 }}"></i>
<b>{{ "–" if value is none else "%.1f" % value }}</b></div>
{% endfor %}
</div></div>
{% endfor %}
</div>
{% endfor %}
<p class="note">Student with running statistics, percent; – marks a class in neither truth nor
prediction.</p>
{% endif %}

{% if charts %}
<h2>Training</h2>
{% for stage in offsets %}
{{ key(color(stage), title(stage)) }}
{% endfor %}
<div class="charts">
{% for chart in charts %}
<figure><figcaption>{{ chart.key }}<br>
{% for stage, line in chart.lines.items() %}{{ key(color(stage), line[1]) }}{% endfor %}
</figcaption>
<svg viewBox="0 0 {{ width }} {{ height }}" role="img"
aria-label="{{ chart.key }} over training steps">
{% for y, text in chart.y %}
<path d="M{{ left }} {{ y }}H{{ width }}"/>
<text x="{{ left - 6 }}" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>
{% endfor %}
{% for x, text in chart.x %}
<text x="{{ x }}" y="{{ height - 4 }}" text-anchor="middle">{{ text }}</text>
{% endfor %}
{% for stage, line in chart.lines.items() %}
<polyline class="{{ color(stage) }}" points="{{ line[0] }}"/>
{% endfor %}
</svg></figure>
{% endfor %}
</div>
<p class="note">Over training steps, the stages one after another; the numbers are the last ones
logged. Long logs are averaged.</p>
{% endif %}

{% set images = consensus | selectattr("round", "equalto", 1) | sum("images") %}
{% if images %}
<h2>{{ selection }}</h2>
<div class="scroll"><table><thead><tr>
<th scope="col">round</th><th scope="col">pixels kept</th>
<th scope="col">accuracy of kept</th><th scope="col">accuracy of all</th>
</tr></thead><tbody>
{% for row in consensus %}
<tr><th scope="row">{{ row.round }}{{ ", " ~ row.validation if row.validation }}</th>
{% for share in (row.kept, row.accuracy, row.accuracy_offline) %}
<td>{{ "–" if share is none else "%.1f %%" % (100 * share) }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
<p class="note">At the start of each round, on the {{ images }} validation images,
whose labels serve this diagnosis only: nothing in the run uses it. <em>All</em> are the pseudo
labels before the selection drops some.</p>
{% endif %}

{% if translated.images %}
<h2>Translator</h2>
<p class="note">Source images, translated to the style of the target, and translated back.</p>
{{ pictures(translated, "translator/panels") }}
{% endif %}

{% if panels.images %}
<h2>Validation images</h2>
{% for class in palette %}
{{ class_key(class) }}
{% endfor %}
{{ key("", "no label, or not kept", "background: #000") }}
{{ pictures(panels, "panels") }}
{% endif %}

<h2>Files</h2>
{% for name, text in files.items() if text %}
<details><summary>{{ name }}</summary><pre>{{ text }}</pre></details>
{% endfor %}
</body></html>
"""
