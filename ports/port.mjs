// The sampler and the energy in plain JavaScript, tested through the vectors:
//     node ports/port.mjs > results.json && python -m oracle check results.json
import { readFileSync } from "node:fs";

const read = (name) => JSON.parse(readFileSync(new URL(`../vectors/${name}.json`, import.meta.url), "utf8")).vectors;
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const at = (x, i) => (Array.isArray(x) ? x[i] : x);              // mass and b_hat: one number, or one per coordinate

// Algorithm 1; the second kick of a leapfrog and the first kick of the next share their position, hence their gradient.
function sghmcStep(w, z, grad, { eps, L, alpha, mass, b_hat }) {
  const M = w.map((_, i) => at(mass, i));
  const noise = M.map((m, i) => Math.sqrt(2 * (alpha * m - at(b_hat, i) * eps)));
  if (noise.some(Number.isNaN)) throw new RangeError("b_hat is larger than the friction");
  let Phi = M.map((m, i) => Math.sqrt(m) * z[0][i]);             // line 1
  let X = [...w];
  let g = grad(X);
  for (let l = 0; l < L; l++) {                                  // line 2
    const kick = (row) => Phi.map((v, i) => (1 - alpha) * v - (eps / 2) * g[i] + noise[i] * z[row][i]);
    Phi = kick(2 * l + 1);                                       // line 3
    X = X.map((x, i) => x + (eps * Phi[i]) / M[i]);              // line 4
    if (l === L - 1) break;                                      // the last half-kick never reaches W_{t+1}
    g = grad(X);
    Phi = kick(2 * l + 2);                                       // line 5
  }
  return X;                                                      // line 6
}

// One pair of rows: cosine, |p|, |z|; a row of zeros has cosine 0.
function pair(p, z) {
  const [a, b] = [Math.hypot(...p), Math.hypot(...z)];
  return { a, b, s: a && b ? dot(p, z) / a / b : 0 };
}

// Equation 2: U and its gradient by p1, z1, p2, z2.
function energy(p1, z1, p2, z2, stopGrad) {
  const B = p1.length;
  const views = [p1.map((p, i) => pair(p, z2[i])), p2.map((p, i) => pair(p, z1[i]))];
  const m = Math.min(1, views.flat().reduce((sum, { s }) => sum + Math.abs(s), 0) / (2 * B));
  const rowGrad = (from, to, x, y, { s }) =>                     // dU/dx of |cos(x, y)|, |x| = from, |y| = to
    x.map((_, j) => (from && to ? (-Math.sign(s) / (2 * B * m) / from) * (y[j] / to - (s * x[j]) / from) : 0));
  const grads = [
    p1.map((p, i) => rowGrad(views[0][i].a, views[0][i].b, p, z2[i], views[0][i])),
    z1.map((z, i) => rowGrad(views[1][i].b, views[1][i].a, z, p2[i], views[1][i])),
    p2.map((p, i) => rowGrad(views[1][i].a, views[1][i].b, p, z1[i], views[1][i])),
    z2.map((z, i) => rowGrad(views[0][i].b, views[0][i].a, z, p1[i], views[0][i])),
  ];
  if (stopGrad) for (const i of [1, 3]) grads[i] = grads[i].map((row) => row.map(() => 0));
  return { u: -Math.log(m), grads };
}

const steps = read("step").map((v) => {
  const grad = (x) => v.A.map((row, i) => (Array.isArray(row) ? dot(row, x) : row * x[i]) - v.b[i]); // U = x'Ax/2 - b'x
  return { id: `step/${v.id}`, w_new: sghmcStep(v.w, v.z, grad, v) };
});
const energies = read("energy").map((v) => ({ id: `energy/${v.id}`, ...energy(v.p1, v.z1, v.p2, v.z2, v.stop_grad) }));
console.log(JSON.stringify([...steps, ...energies]));
