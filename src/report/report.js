'use strict';
// Everything that came out of a log is set as text, never as markup: names are whatever somebody called a file.
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const entries = data.entries;
  const $ = (id) => document.getElementById(id);
  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const number = (value) => value.toLocaleString('en-US');
  const bytes = (value) => {
    const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
    let unit = 0;
    while (value >= 1024 && unit + 1 < units.length) { value /= 1024; ++unit; }
    return (unit === 0 ? value : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)) + ' ' + units[unit];
  };
  const time = (ms) => ms ? new Date(ms).toISOString().replace('T', ' ').replace('Z', '') : '';
  const opener = (comm, pid, uid) => pid ? `${comm}[${pid}] uid ${uid}` : '';

  // ---- the head ----

  $('target').textContent = data.target;
  const words = { verified: 'Verified', mismatch: 'Mismatch', incomplete: 'Incomplete' };
  $('verdict').textContent = `${words[data.verification.verdict]}: ${data.verification.message}`;
  $('verdict').className = data.verification.verdict;
  $('about').textContent = `As of ${time(data.made)} UTC` + (data.backing ? `, shows ${data.backing}` : '') +
      (data.trimmed ? `; ${number(data.trimmed)} earlier entries are in archives` : '');
  const totals = [['entries', number(data.totals.entries)], ['names', number(data.totals.names)], ['measured', bytes(data.totals.bytes)],
                  ['violations', number(data.totals.violations)], ['policies', number(data.policies.length)]];
  for (const [label, value] of totals) {
    const card = make('div');
    card.append(make('b', value), label);
    card.dataset.total = label;
    $('totals').append(card);
  }
  for (const pcr of data.verification.pcrs) {
    const row = make('tr');
    row.append(make('td', pcr.bank), make('td', pcr.pcr), make('td', pcr.replayed, 'mono'),
               make('td', pcr.expected === null || pcr.expected === undefined ? 'not asked' : pcr.expected === pcr.replayed ? 'the same' : pcr.expected,
                    pcr.expected ? (pcr.expected === pcr.replayed ? 'good' : 'bad mono') : ''));
    $('pcrs').tBodies[0].append(row);
  }

  // ---- charts ----

  const style = () => {
    const values = getComputedStyle(document.documentElement);
    return (name) => values.getPropertyValue('--' + name).trim();
  };
  const charts = [];
  const draw = (id, options) => {
    const chart = echarts.init($(id), null, { renderer: 'canvas' });
    chart.setOption(options(style()));
    charts.push([chart, options]);
  };

  if (data.timeline) {
    const at = (i) => data.timeline.start + i * data.timeline.step;
    const bars = (name, counts, color) => ({ name, type: 'bar', stack: 'all', barCategoryGap: '10%', itemStyle: { color },
                                             data: counts.map((count, i) => [at(i), count]) });
    draw('timeline', (color) => ({
      animation: false,
      grid: { left: 60, right: 10, top: 30, bottom: 30 },
      legend: { textStyle: { color: color('text') }, top: 0 },
      tooltip: { trigger: 'axis', backgroundColor: color('raised'), borderColor: color('line'), textStyle: { color: color('text') } },
      useUTC: true,
      xAxis: { type: 'time', min: at(0), max: at(data.timeline.entries.length), axisLabel: { color: color('faint'), hideOverlap: true }, axisLine: { lineStyle: { color: color('line') } } },
      yAxis: { type: 'value', minInterval: 1, axisLabel: { color: color('faint') }, splitLine: { lineStyle: { color: color('line') } } },
      series: [bars('measurements', data.timeline.entries, color('accent')), bars('violations', data.timeline.violations, color('bad'))],
    }));
  } else {
    $('timeline').replaceWith(make('p', 'A binary log holds no times: report on the mount, or on its state directory.', 'note'));
  }

  // Directories come as paths with what lies in each; here they become a tree.
  const by_bytes = data.totals.bytes > 0;
  if (!by_bytes) $('treemap-title').textContent = 'Entries by directory';
  const tree = () => {
    const root = { name: '/', children: [] };
    const nodes = new Map([['', root]]);
    const node_of = (path) => {
      let node = nodes.get(path);
      if (node) return node;
      const cut = path.lastIndexOf('/');
      node = { name: path.slice(cut + 1) || '/', children: [] };
      nodes.set(path, node);
      node_of(cut < 0 ? '' : path.slice(0, cut)).children.push(node);
      return node;
    };
    for (const [path, size, count] of data.directories) {
      const value = by_bytes ? size : count;
      if (value > 0) node_of(path === '/' ? '' : path).children.push({ name: '(files)', value, files: count });
    }
    // A directory whose only child are its files is drawn as one.
    const simplify = (node) => {
      if (!node.children) return node;
      node.children = node.children.map(simplify);
      node.value = node.children.reduce((sum, child) => sum + child.value, 0);
      if (node.children.length === 1 && node.children[0].name === '(files)') return { name: node.name, value: node.value };
      if (node.children.length === 1 && node !== root) {
        const [only] = node.children;
        return { ...only, name: node.name + '/' + only.name };
      }
      return node;
    };
    return simplify(root);
  };
  const whole = tree();
  const palette = ['#4269a8', '#3f8476', '#8a6a2f', '#7a5195', '#a05245', '#54783b', '#5b6b7b', '#96507a'];
  draw('treemap', (color) => ({
    animation: false,
    tooltip: {
      backgroundColor: color('raised'), borderColor: color('line'), textStyle: { color: color('text') },
      formatter: (item) => {
        const path = item.treePathInfo.slice(1).map((part) => part.name).filter((part) => part !== '(files)').join('/');
        return echarts.format.encodeHTML('/' + path) + '<br>' + (by_bytes ? bytes(item.value) : number(item.value) + ' entries');
      },
    },
    series: [{
      type: 'treemap', name: '/', data: whole.children || [whole], leafDepth: 3, roam: false, nodeClick: 'zoomToNode', top: 4, left: 0, right: 0, bottom: 34,
      breadcrumb: { bottom: 2, itemStyle: { color: color('raised'), borderColor: color('line'), textStyle: { color: color('text') } } },
      upperLabel: { show: true, height: 20, color: color('text') },
      label: { overflow: 'truncate', color: '#ffffff' },
      itemStyle: { borderColor: color('ground'), gapWidth: 1 },
      levels: [{ color: palette, itemStyle: { borderWidth: 0, gapWidth: 3 }, upperLabel: { show: false } },
               { color: palette, itemStyle: { borderColor: color('line'), borderWidth: 2, gapWidth: 1 } },
               { itemStyle: { borderColor: color('line'), borderWidth: 1, gapWidth: 1 } }],
    }],
  }));
  const redraw = () => charts.forEach(([chart, options]) => chart.setOption(options(style())));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
  addEventListener('resize', () => charts.forEach(([chart]) => chart.resize()));

  // ---- violations and policy ----

  $('violations-note').textContent = data.totals.violations === 0 ? 'None.' :
      data.totals.violations > data.violations.length ? `The first ${number(data.violations.length)} of ${number(data.totals.violations)}.` : '';
  if (data.totals.violations === 0) $('violations').remove();
  for (const violation of data.violations) {
    const row = make('tr', undefined, 'bad');
    row.append(make('td', violation.index), make('td', time(violation.time)), make('td', opener(violation.comm, violation.pid, violation.uid)),
               make('td', violation.name));
    $('violations').tBodies[0].append(row);
  }
  const changes = data.policies.length;
  $('policy-note').textContent = data.policy !== null ? 'In force, in the kernel\'s normal form:' :
      changes > 0 ? 'The last that the log holds:' : 'The log does not say (rule: measure func=CRITICAL_DATA label=imafs).';
  const policy = data.policy !== null ? data.policy : changes > 0 ? data.policies[changes - 1].text : null;
  if (policy === null) $('policy').remove(); else $('policy').textContent = policy;
  for (const change of data.policies) {
    const details = make('details');
    details.append(make('summary', `Entry ${change.index}: loaded ${time(change.time)} ${change.pid ? 'by ' + opener(change.comm, change.pid, change.uid) : 'by imafs, when it started'}`),
                   make('pre', change.text));
    $('policy-changes').append(details);
  }

  // ---- the table ----

  const ROW = 26;
  const count = entries.name.length;
  const raw = atob(entries.digests);
  const offsets = new Uint32Array(count + 1);
  for (let i = 0; i < count; ++i) offsets[i + 1] = offsets[i] + entries.algorithms[entries.algorithm[i]][1];
  const digest = (i) => {
    let text = '';
    for (let at = offsets[i]; at < offsets[i + 1]; ++at) text += raw.charCodeAt(at).toString(16).padStart(2, '0');
    return text;
  };
  const violations = new Set(entries.violations);
  const entry = (i) => ({
    index: entries.first + i, time: entries.time.length ? time(data.start + entries.time[i]) : '',
    opener: entries.time.length ? opener(entries.comms[entries.comm[i]], entries.pid[i], entries.uid[i]) : '',
    bytes: entries.size.length && entries.size[i] ? number(entries.size[i]) : '', name: entries.name[i],
    digest: violations.has(i) ? 'VIOLATION' : digest(i), algorithm: entries.algorithms[entries.algorithm[i]][0],
  });

  let shown = null;  // indices that match, or null: all
  let chosen = -1;
  const length = () => shown === null ? count : shown.length;
  const pool = [];
  const render = () => {
    const rows = $('rows');
    const first = Math.max(0, Math.floor(rows.scrollTop / ROW) - 5);
    const last = Math.min(length(), first + Math.ceil(rows.clientHeight / ROW) + 10);
    while (pool.length < last - first) {
      const row = make('div', undefined, 'row');
      row.setAttribute('role', 'row');
      for (let i = 0; i < 6; ++i) row.append(make('span', '', i === 4 ? 'mono' : ''));
      row.addEventListener('click', () => choose(Number(row.dataset.entry)));
      pool.push(row);
      rows.append(row);
    }
    pool.forEach((row, at) => {
      row.hidden = first + at >= last;
      row.style.display = row.hidden ? 'none' : '';
      if (row.hidden) return;
      const i = shown === null ? first + at : shown[first + at];
      const one = entry(i);
      row.dataset.entry = i;
      row.style.top = (first + at) * ROW + 'px';
      row.className = 'row' + (violations.has(i) ? ' violation' : '') + (i === chosen ? ' chosen' : '');
      [one.index, one.time, one.opener, one.bytes, one.digest.slice(0, 16), one.name].forEach((text, column) => { row.children[column].textContent = text; });
    });
  };
  const choose = (i) => {
    chosen = i;
    const one = entry(i);
    $('chosen').replaceChildren();
    for (const [label, value] of [['entry', one.index], ['name', one.name], [one.algorithm || 'digest', one.digest], ['bytes', one.bytes], ['time', one.time],
                                  ['opened by', one.opener], ['PCR', entries.pcr[i]], ['template', entries.templates[entries.template[i]]]]) {
      if (value !== '') $('chosen').append(make('dt', label), make('dd', value, label === one.algorithm ? 'mono' : ''));
    }
    render();
  };

  let lower = null;  // what is searched, made at the first search
  const search = () => {
    const wanted = $('search').value.toLowerCase().split(/\s+/).filter((word) => word);
    if (wanted.length > 0) {
      lower = lower || entries.name.map((name, i) => name.toLowerCase() + (entries.comm.length ? '\0' + entries.comms[entries.comm[i]].toLowerCase() : ''));
      const is_digest = (word) => /^[0-9a-f]{6,}$/.test(word);
      shown = [];
      for (let i = 0; i < count; ++i) {
        if (wanted.every((word) => lower[i].includes(word) || (word === 'violation' && violations.has(i)) || (is_digest(word) && digest(i).startsWith(word)))) shown.push(i);
      }
    } else {
      shown = null;
    }
    $('found').textContent = `${number(length())} of ${number(count)}` + (count < data.totals.entries ? `, the newest of ${number(data.totals.entries)}` : '');
    $('space').style.height = length() * ROW + 'px';
    $('rows').scrollTop = 0;
    history.replaceState(null, '', wanted.length ? '#q=' + encodeURIComponent($('search').value) : '#');
    render();
  };
  let frame = 0;
  $('rows').addEventListener('scroll', () => { cancelAnimationFrame(frame); frame = requestAnimationFrame(render); });
  $('search').addEventListener('input', search);
  const from_fragment = () => {
    $('search').value = location.hash.startsWith('#q=') ? decodeURIComponent(location.hash.slice(3)) : '';
    search();
  };
  addEventListener('hashchange', from_fragment);
  from_fragment();
  document.documentElement.dataset.ready = Math.round(performance.now());  // ms since the navigation began
})();
