// One step for the whole report: a bar that stays in sight, and what follows it besides the charts, the lens and the patterns.
document.documentElement.classList.add('scripts');

function stepBar(root) {
  const steps = root.dataset.steps.split(' ').map(Number);
  if (steps.length < 2) return;
  let at = steps.length - 1;
  const chooser = stepChooser(steps, (index) => { at = index; });
  const move = (by) => goToStep(steps[Math.min(Math.max(at + by, 0), steps.length - 1)]);
  const button = (text, label, by) => {
    const node = make('button', { type: 'button', 'aria-label': label }, text);
    node.addEventListener('click', () => move(by));
    return node;
  };
  root.append(button('←', 'step before', -1), chooser, button('→', 'step after', 1));
  followSteps(steps);
}

// The scores of every head at the page's step; the chosen order is kept.
function headListing(root) {
  const { steps, values, beside } = JSON.parse(root.querySelector('script').textContent);
  const said = document.querySelector('[data-heads-step]');
  const table = root.querySelector('table');
  followers.push((step) => {
    const at = nearestIndex(steps, step);
    for (const row of table.tBodies[0].rows) {
      const scores = values.map((score) => score[row.cells[0].dataset.value][at]);
      scores.forEach((value, i) => {
        row.cells[i + 1].textContent = value === null ? '–' : value.toFixed(3);
        row.cells[i + 1].dataset.value = value ?? '';
      });
    }
    beside.forEach((value, i) => { table.tFoot.rows[0].cells[i + 1].textContent = value[at].toFixed(3); });
    said.textContent = grouped(steps[at]);
    sortRows(table);
  });
  for (const button of root.querySelectorAll('button[data-head]')) {
    button.addEventListener('click', () => {
      const thumb = document.querySelector(`.attention .thumb[data-head="${CSS.escape(button.dataset.head)}"]`);
      if (!thumb) return;
      thumb.click();
      document.getElementById('attention').scrollIntoView();
    });
  }
}

// Samples of one step at a time, or of all.
function samplesOf(section) {
  const samples = [...section.querySelectorAll('.sample')];
  const steps = samples.map((sample) => Number(sample.dataset.step));
  if (steps.length < 2) return;
  const show = (step) => {
    const at = nearestIndex(steps, step);
    samples.forEach((sample, i) => sample.classList.toggle('shown', i === at));
  };
  const all = make('button', { type: 'button', class: 'no-print' }, 'Show every step');
  all.addEventListener('click', () => {
    const one = section.classList.toggle('one-step');
    all.textContent = one ? 'Show every step' : 'Show one step';
  });
  section.classList.add('one-step');
  show(steps[steps.length - 1]);
  followers.push(show);
  samples[0].before(all);
}

document.querySelectorAll('[data-view="heads"]').forEach(headListing);
document.querySelectorAll('#samples').forEach(samplesOf);
document.querySelectorAll('.stepper').forEach(stepBar);
