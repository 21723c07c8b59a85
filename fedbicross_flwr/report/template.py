"""The report page as a Jinja2 template; a Python string, as a Flower app bundle holds no HTML files.

Every value goes through autoescaping. The content security policy forbids the page to load anything, so
that it can be opened inside a hospital's network without a request leaving it.
"""

from __future__ import annotations

TEMPLATE = """\
{%- macro picture(name, alt) -%}
{%- if name in light -%}
<div class="scroll"><picture>
<source media="screen and (prefers-color-scheme: dark)" srcset="{{ dark[name] }}">
<img src="{{ light[name] }}" alt="{{ alt }}">
</picture></div>
{%- else -%}
<p class="absent">Left out: {{ left_out[name] }}</p>
{%- endif -%}
{%- endmacro -%}
{%- macro pairs(items, caption) -%}
<table class="pairs"><caption class="muted">{{ caption }}</caption><tbody>
{%- for key, value in items %}
<tr><th scope="row"><code>{{ key }}</code></th><td><code>{{ value }}</code></td></tr>
{%- endfor %}
</tbody></table>
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>FedBiCross on {{ run.dataset.name }} – {{ run.id }}</title>
<style>{{ css }}</style>
</head>
<body>
<main>
<header>
<p class="kicker">FedBiCross run report</p>
<h1>{{ run.dataset.name }}, {{ run.clients | length }} clients</h1>
<p class="muted">Run <code>{{ run.id }}</code>. Each client is one hospital. {{ exchange }}</p>
<dl class="facts">
{%- for label, value in facts %}
<div><dt>{{ label }}</dt><dd>{{ value }}</dd></div>
{%- endfor %}
</dl>
</header>
{%- if warnings %}
<div class="warning" role="note">
{%- for line in warnings %}
<p>{{ line }}</p>
{%- endfor %}
</div>
{%- endif %}
{%- if headlines %}
<div class="cards">
{%- for card in headlines %}
<article class="card">
<h2>{{ card.title }}</h2>
<p class="big">{{ card.bars[0].value }} %<small>mean accuracy of {{ subject }}</small></p>
<div class="bars">
{%- for bar in card.bars %}
<div class="bar{{ ' ours' if bar.ours }}"><span class="name">{{ bar.name }}</span>
<span class="track"><span class="fill" style="width: {{ '%.2f' | format(bar.width) }}%"></span></span>
<span class="value">{{ bar.value }}</span> <span class="difference">{{ bar.difference }}</span></div>
{%- endfor %}
</div>
<p class="sentence">{{ card.sentence }}</p>
</article>
{%- endfor %}
</div>
<p class="note">Signed numbers: {{ subject }} minus that method, in percentage points. This is one run with
one seed; a small difference may be chance, and only several seeds can tell.</p>
{%- endif %}

<section id="results">
<h2>Results</h2>
{%- if table %}
<p class="muted">Percent, over the clients’ models. “Worst” is the client that fares worst. Balanced
accuracy gives every class the same say; AUC measures how well classes are ranked apart; ECE, the expected
calibration error, how far stated confidence is from the truth (lower is better). Sent and received are
bytes per client, of models and what goes with them.</p>
<div class="tables">
{%- for protocol in table.protocols %}
<div><h3 id="results-{{ protocol }}">{{ titles[protocol] }}</h3>
<div class="scroll"><table class="results" aria-labelledby="results-{{ protocol }}">
<thead>
<tr class="groups"><th></th>
{%- for metric in metrics %}<th colspan="2" scope="colgroup">{{ metric.title }}</th>{% endfor -%}
<th colspan="2" scope="colgroup">Bytes</th></tr>
<tr><th scope="col">Method</th>
{%- for metric in metrics %}<th scope="col">mean</th><th scope="col">worst</th>{% endfor -%}
<th scope="col">sent</th><th scope="col">received</th></tr>
</thead>
<tbody>
{%- for row in table.rows %}
<tr class="{{ row.kind }}"><th scope="row">{{ title(row) }}<span>{{ row.note }}</span></th>
{%- for metric in metrics %}{% for statistic in statistics -%}
<td class="{{ 'start' if loop.first else 'worst' }}">
{%- if row.name in table.best(protocol, metric, statistic) -%}
<b>{{ shown(row, protocol, metric, statistic) }}</b>
{%- else -%}{{ shown(row, protocol, metric, statistic) }}{%- endif -%}
</td>
{%- endfor %}{% endfor -%}
<td class="start">{{ human_bytes(row.bytes_up) }}</td><td>{{ human_bytes(row.bytes_down) }}</td></tr>
{%- endfor %}
</tbody></table></div></div>
{%- endfor %}
</div>
<div class="note">
<p>Marked: the best of each column. A ceiling shows what all uploads together know; no client receives it,
so it does not compete.</p>
{%- for note in table.notes %}
<p>{{ note }}</p>
{%- endfor %}
</div>
{%- else %}
<p class="absent">The run folder holds no metrics.json: this run evaluated no model.</p>
{%- endif %}
</section>

<section id="accuracy">
<h2>Accuracy of every client</h2>
<figure>{{ picture("accuracy", "Accuracy of every client under every method") }}
<figcaption>Each dot is one hospital’s model. The upright line and the number are the mean. Within a row
the hospitals stand in the same order from top to bottom, so that one can be followed from row to row.
Hollow dots are a ceiling, not a model that a hospital could use.</figcaption></figure>
</section>

<section id="clients">
<h2>The clients</h2>
<p class="muted">What each hospital holds, what crossed its network boundary, and how its models fare. {{
traffic }}</p>
<div class="scroll"><table>
<thead>
<tr class="groups"><th colspan="4"></th>
{%- for protocol in protocols %}
<th colspan="3" scope="colgroup">Accuracy, {{ protocol }} test</th>
{%- endfor %}
<th colspan="2" scope="colgroup">Network</th></tr>
<tr><th scope="col">Client</th><th scope="col">Cluster</th><th scope="col">Images</th>
<th scope="col">Validation</th>
{%- for protocol in protocols %}
<th scope="col">local-only</th><th scope="col">{{ subject or "its method" }}</th><th scope="col">±</th>
{%- endfor %}
<th scope="col">sent</th><th scope="col">received</th></tr>
</thead>
<tbody>
{%- for line in clients %}
<tr class="{{ '' if line.ok else 'failed' }}"><th scope="row">{{ line.client }}</th>
<td>{{ "–" if line.cluster is none else line.cluster }}</td><td>{{ line.images }}</td>
{%- if line.ok %}<td>{{ line.validation }}</td>
{%- for own, ours, difference in line.scores %}
<td>{{ own }}</td><td>{{ ours }}</td><td>{{ difference }}</td>
{%- endfor %}
{%- else %}
<td class="text" colspan="{{ 1 + 3 * protocols | length }}">failed:
{{ line.reason or "no reason recorded" }}</td>
{%- endif %}
<td>{{ line.sent }}</td><td>{{ line.received }}</td></tr>
{%- endfor %}
</tbody></table></div>
<p class="note">Validation: accuracy of the client’s own model on the part of its own images that it kept
aside.</p>
</section>

<section id="partition">
<h2>Who holds what</h2>
<figure>{{ picture("partition", "Number of images of each class at each client") }}
{%- if "partition" in light %}
<figcaption>Each column is one hospital, each row a class; the area of a disc is the number of images. The
more the columns differ, the harder it is to learn together.
{%- if run.failed %} Grey columns are clients that failed.{% endif %}</figcaption>
{%- endif %}</figure>
</section>
{%- if shown_parts["clustering"] %}

<section id="clustering">
<h2>Who is like whom</h2>
<figure>{{ picture("clustering", "Similarity of the clients' models, ordered by cluster") }}
{%- if clustering_text %}
<figcaption>{{ clustering_text }}</figcaption>
{%- endif %}</figure>
</section>
{%- endif %}
{%- if shown_parts["synthetic"] %}

<section id="synthetic">
<h2>Synthetic images</h2>
<figure>{{ picture("synthetic", "Synthetic images of every cluster and class") }}
{%- if "synthetic" in light %}
<figcaption>The server holds no patient image. It makes its own, until the models that it received
recognise a class in each. These are the last of them; the models it sends back learn from such images alone.
They need not look like real images. {{ synthetic_text }}</figcaption>
{%- endif %}</figure>
{%- if shown_parts["inversion"] %}
<h3>How they came about</h3>
<figure>{{ picture("inversion", "Agreement, confidence, classes covered and losses over inversion steps") }}
{%- if "inversion" in light %}
<figcaption>Agreement: share of images that the cluster’s models give the intended class. Confidence: how
sure they are. Classes covered: how many classes are recognised in at least one image. The lower row shows
the three losses that are minimised, on a logarithmic scale. Fainter lines are earlier rounds. High
agreement alone does not make good images: look at them, too.</figcaption>
{%- endif %}</figure>
{%- endif %}
</section>
{%- endif %}
{%- if shown_parts["weights"] %}

<section id="weights">
<h2>Who learns from whom</h2>
<figure>{{ picture("weights", "Cross-cluster weights over the steps") }}
{%- if "weights" in light %}
<figcaption>Each panel is one cluster’s model; its lines say how much it learns from its own and from the
other clusters’ images. In a panel the weights always add up to one. A line that falls to zero is a
cluster that does not help.</figcaption>
{%- endif %}</figure>
</section>
{%- endif %}

<section id="time">
<h2>Where the time went</h2>
<div class="bars times">
{%- for line in timings %}
<div class="bar"><span class="name">{{ line.stage }}</span>
<span class="track"><span class="fill" style="width: {{ '%.2f' | format(line.share) }}%"></span></span>
<span class="value">{{ line.time }}</span></div>
{%- endfor %}
</div>
</section>

<section id="details">
<h2>To repeat this run</h2>
<details><summary>Configuration</summary>
{{ pairs(run.config.items(), "config.toml of the run folder") }}</details>
<details><summary>Versions and hardware</summary>
{{ pairs(run.versions.items(), "Software") }}{{ pairs(hardware, "Hardware and runner") }}</details>
<details><summary>Data set</summary>{{ pairs(dataset, "As declared by the data set") }}</details>
{%- if files %}
<details><summary>Models in the run folder</summary>{{ pairs(files, "safetensors files") }}</details>
{%- endif %}
</section>
<footer>Written by FedBiCross {{ run.versions.get("fedbicross", "") }} from the run folder alone. The page
loads nothing from the network.</footer>
</main>
</body>
</html>
"""
