// Charts arrive drawn. This adds the nearest point under the mouse, and a switch between a logarithmic and a linear step axis.
const numbersOf = (node, name) => node.dataset[name].split(' ').map(Number);

function readChart(svg) {
  const [left, right, low, high, top, bottom] = numbersOf(svg, 'frame');
  const scale = (x) => (svg.dataset.axis === 'steps' ? Math.log1p(x) : x);
  const place = (x) => left + ((right - left) * (scale(x) - scale(low))) / (scale(high) - scale(low) || 1);
  return { left, right, top, bottom, place };
}

function replaceX(svg) {
  const { place } = readChart(svg);
  const fixed = (x) => place(x).toFixed(1);
  for (const node of svg.querySelectorAll('[data-x]')) {
    const xs = numbersOf(node, 'x');
    if (node.hasAttribute('points')) {
      const ys = node.getAttribute('points').split(' ').map((point) => point.split(',')[1]);
      node.setAttribute('points', xs.map((x, i) => `${fixed(x)},${ys[i]}`).join(' '));
    } else if (node.tagName === 'rect') {
      node.setAttribute('x', fixed(xs[0]));
      node.setAttribute('width', (place(xs[1]) - place(xs[0])).toFixed(1));
    } else if (node.tagName === 'line') {
      node.setAttribute('x1', fixed(xs[0]));
      node.setAttribute('x2', fixed(xs[0]));
    } else {
      node.setAttribute(node.tagName === 'circle' ? 'cx' : 'x', fixed(xs[0]));
    }
  }
}

function nearest(svg, x, y) {
  let best = { distance: 30 };
  for (const line of svg.querySelectorAll('polyline[data-y]')) {
    line.getAttribute('points').split(' ').forEach((point, index) => {
      const [px, py] = point.split(',').map(Number);
      const distance = Math.hypot(px - x, py - y);
      if (distance < best.distance) best = { distance, px, py, line, index };
    });
  }
  return best.line ? best : null;
}

function hoverChart(svg) {
  const figure = svg.closest('figure');
  if (!figure) return; // a chart the size of a word has no room for a readout
  const readout = make('div', { class: 'readout', hidden: '' });
  const dot = make('circle', { class: 'point', r: 4, visibility: 'hidden' });
  svg.append(dot);
  figure.append(readout);
  const hide = () => {
    readout.hidden = true;
    dot.setAttribute('visibility', 'hidden');
  };
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect();
    const ratio = box.width / svg.viewBox.baseVal.width;
    const found = nearest(svg, (event.clientX - box.left) / ratio, (event.clientY - box.top) / ratio);
    if (!found) return hide();
    dot.setAttribute('cx', found.px);
    dot.setAttribute('cy', found.py);
    dot.setAttribute('visibility', 'visible');
    const x = found.line.dataset.x.split(' ')[found.index];
    const y = found.line.dataset.y.split(' ')[found.index];
    readout.textContent = `${found.line.dataset.name} · ${svg.dataset.xname} ${grouped(Number(x))} · ${y}`;
    readout.hidden = false;
    const outer = figure.getBoundingClientRect();
    const left = box.left - outer.left + found.px * ratio;
    readout.style.left = `${Math.max(0, Math.min(left - readout.offsetWidth / 2, outer.width - readout.offsetWidth))}px`;
    readout.style.top = `${box.top - outer.top + found.py * ratio - readout.offsetHeight - 10}px`;
  });
}

document.querySelectorAll('svg.chart').forEach(hoverChart);

// The step that the page shows, as a line through every chart over steps; a click on one goes to the nearest of `steps`.
function followSteps(steps) {
  for (const svg of document.querySelectorAll('svg.chart[data-axis$="steps"]')) {
    const { top, bottom } = readChart(svg);
    const cursor = make('line', { class: 'cursor', y1: top, y2: bottom, 'data-x': steps[steps.length - 1] });
    svg.append(cursor);
    svg.classList.add('follows');
    const follow = (step) => {
      const x = readChart(svg).place(step).toFixed(1);
      for (const [key, value] of Object.entries({ x1: x, x2: x, 'data-x': step })) cursor.setAttribute(key, value);
    };
    follow(steps[steps.length - 1]);
    followers.push(follow);
    svg.addEventListener('click', (event) => {
      const box = svg.getBoundingClientRect();
      const pixel = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const { place } = readChart(svg);
      goToStep(steps[nearestIndex(steps.map(place), pixel)]);
    });
  }
}

for (const button of document.querySelectorAll('button[data-axis-switch]')) {
  const charts = [...document.querySelectorAll('svg.chart[data-axis$="steps"]')];
  const log = () => charts[0].dataset.axis === 'steps';
  const say = () => { button.textContent = log() ? 'Linear steps' : 'Log steps'; };
  button.hidden = !charts.length;
  if (charts.length) say();
  button.addEventListener('click', () => {
    const axis = log() ? 'linear-steps' : 'steps';
    for (const svg of charts) {
      svg.dataset.axis = axis;
      replaceX(svg);
    }
    say();
  });
}
