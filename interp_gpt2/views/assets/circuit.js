// A node under the mouse or the focus keeps its edges and their other ends; the rest steps back.
document.querySelectorAll('.circuit').forEach((view) => {
  const svg = view.querySelector('svg.layered');
  const said = view.querySelector('.said');
  const hint = said.textContent;
  const nodes = [...svg.querySelectorAll('.node')];
  const edges = [...svg.querySelectorAll('.edges .edge')];
  const choose = (node) => {
    const name = node?.dataset.node;
    const mine = edges.filter((edge) => [edge.dataset.from, edge.dataset.to].includes(name));
    const near = new Set(mine.flatMap((edge) => [edge.dataset.from, edge.dataset.to]));
    svg.classList.toggle('chosen', Boolean(node));
    edges.forEach((edge) => edge.classList.toggle('on', mine.includes(edge)));
    nodes.forEach((other) => other.classList.toggle('on', other === node || near.has(other.dataset.node)));
    said.textContent = node ? node.getAttribute('aria-label') : hint;
  };
  nodes.forEach((node) => {
    node.addEventListener('mouseenter', () => choose(node));
    node.addEventListener('focus', () => choose(node));
    node.addEventListener('mouseleave', () => choose(nodes.find((other) => other === document.activeElement)));
    node.addEventListener('blur', () => choose(null));
    node.addEventListener('keydown', (event) => { if (event.key === 'Escape') node.blur(); });
  });
});
