"use strict";
// What lies over the points of the map: the names of the classes where each is densest, or as many pictures as find room.
// `on.where(i)` is the place of point i in the frame, in pixels; `on.seen(i)` whether it is shown, `on.width(name)`
// how wide a name is.
const overlay = {
  NAMED: 40, // groups at most that have their names on the map

  densest(group, members, xs, ys, reach) {
    // The member with the most members around it; of many, only some are looked at.
    const some = (most) => members.filter((_, k) => k % Math.ceil(members.length / most) === 0);
    const [asked, others] = [some(150), some(600)];
    let [found, best] = [members[0], -1];
    for (const i of asked) {
      let near = 0;
      for (const k of others) near += Math.exp(-((xs[i] - xs[k]) ** 2 + (ys[i] - ys[k]) ** 2) / (2 * reach * reach));
      if (near > best) [found, best] = [i, near];
    }
    return found;
  },

  anchors(images, xs, ys) {
    // For each group that has points, the point that its name stands at; the largest group first.
    const members = images.groups.map(() => []);
    for (let i = 0; i < images.points; i++) members[images.group[i]].push(i);
    const span = (values) => values.reduce((most, v) => Math.max(most, v), -Infinity) - values.reduce((least, v) => Math.min(least, v), Infinity);
    const reach = 0.04 * Math.max(span(xs), span(ys)) || 1;
    return members.map((own, group) => ({ group, size: own.length, own })).filter((one) => one.size)
      .sort((a, b) => b.size - a.size)
      .map(({ group, own }) => ({ group, at: overlay.densest(group, own, xs, ys, reach) }));
  },

  names(on, anchors, make) {
    // The names, none over another: one that finds no room up or down its anchor is left out.
    const boxes = [];
    const made = [];
    const line = on.wide < 500 ? 15 : 18;
    for (const { group, at } of anchors) {
      if (on.group !== null && on.group !== group) continue;
      const [left, top] = on.where(at);
      const half = on.width(on.images.groups[group]) / 2 + 3;
      if (left < 0 || top < 0 || left > on.wide || top > on.high) continue;
      const middle = Math.min(Math.max(left, half), Math.max(half, on.wide - half));
      const free = [0, -line, line, -2 * line, 2 * line].map((shift) => top + shift).find((y) => y > line / 2 && y < on.high - line / 2
        && boxes.every((box) => Math.abs(box.y - y) >= line || Math.abs(box.x - middle) >= box.half + half));
      if (free === undefined) continue;
      boxes.push({ x: middle, y: free, half });
      const name = make("span", "name", on.images.groups[group]);
      name.style.left = `${middle}px`;
      name.style.top = `${free}px`;
      made.push(name);
    }
    return made;
  },

  side(on) {
    // How wide a picture is: the fewer images, the larger.
    return Math.round(Math.min(52, Math.max(on.wide < 500 ? 24 : 34, Math.sqrt((0.12 * on.wide * on.high) / on.images.points))));
  },

  pictures(on, show) {
    // Pictures at their places, in the order of the images, which is random; one that would cover another is left out.
    const side = overlay.side(on);
    const cells = new Map();
    const made = [];
    const key = (column, row) => column * 10000 + row;
    for (let i = 0; i < on.images.points; i++) {
      if (!on.seen(i)) continue;
      const [left, top] = on.where(i);
      if (left < side / 2 || top < side / 2 || left > on.wide - side / 2 || top > on.high - side / 2) continue;
      const [column, row] = [Math.floor(left / side), Math.floor(top / side)];
      let free = true;
      for (let c = column - 1; c <= column + 1; c++) {
        for (let r = row - 1; r <= row + 1; r++) {
          const other = cells.get(key(c, r));
          if (other && Math.abs(other[0] - left) < side + 3 && Math.abs(other[1] - top) < side + 3) free = false;
        }
      }
      if (!free) continue;
      cells.set(key(column, row), [left, top]);
      made.push(show(i, left, top, side));
    }
    return made;
  },
};
