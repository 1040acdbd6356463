// Masks and heat maps as canvases that can be drawn over the photograph.

/** Compressed COCO run lengths: alternating counts of pixels outside and inside, column by column. */
function runs(counts) {
  const found = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const code = counts.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
      more = Boolean(code & 32);
      if (!more && code & 16) value |= -1 << shift;
    }
    if (found.length > 2) value += found[found.length - 2];
    found.push(value);
  }
  return found;
}

/** A mask in one colour on nothing, no more than `longest` pixels on a side. */
export function maskCanvas({ size: [height, width], counts }, colour, longest) {
  const inside = new Uint8Array(height * width); // by columns
  let at = 0;
  runs(counts).forEach((length, number) => {
    if (number % 2) inside.fill(1, at, at + length);
    at += length;
  });
  const scale = Math.min(1, longest / Math.max(height, width));
  const canvas = blank(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const pixels = new ImageData(canvas.width, canvas.height);
  const words = new Uint32Array(pixels.data.buffer);
  const filled = new Uint32Array(new Uint8Array([...colour, 255]).buffer)[0];
  for (let y = 0; y < canvas.height; y++) {
    const row = Math.min(height - 1, Math.floor((y + 0.5) / scale));
    for (let x = 0; x < canvas.width; x++) {
      const column = Math.min(width - 1, Math.floor((x + 0.5) / scale));
      if (inside[column * height + row]) words[y * canvas.width + x] = filled;
    }
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** How many pixels a mask holds. */
export function area({ counts }) {
  return runs(counts).reduce((sum, length, number) => sum + (number % 2 ? length : 0), 0);
}

/** Tints and outlines a mask. */
export function drawMask(context, mask) {
  const { width, height } = context.canvas;
  const line = Math.max(1.5, Math.max(width, height) / 420);
  const outline = ring(mask, width, height, line);
  context.globalAlpha = 0.38;
  context.drawImage(mask, 0, 0, width, height);
  context.globalAlpha = 1;
  context.drawImage(outline, 0, 0);
}

/** What lies within `line` pixels outside a mask: in the mask's colour, and white beyond. */
function ring(mask, width, height, line) {
  const grown = blank(width, height), outer = blank(width, height);
  for (const [canvas, reach] of [[outer, 1.7 * line], [grown, line]]) {
    const context = canvas.getContext("2d");
    for (let step = 0; step < 16; step++) {
      const angle = step * Math.PI / 8;
      context.drawImage(mask, reach * Math.cos(angle), reach * Math.sin(angle), width, height);
    }
  }
  const context = outer.getContext("2d");
  context.globalCompositeOperation = "source-in";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "source-over";
  context.drawImage(grown, 0, 0);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(mask, 0, 0, width, height);
  return outer;
}

/** Leaves light only where a word counts; `map` holds rows of values in 0..1 over the whole photograph. */
export function drawHeat(context, map) {
  const heat = blank(map[0].length, map.length);
  const pixels = new ImageData(heat.width, heat.height);
  map.forEach((row, y) => row.forEach((value, x) => {
    pixels.data[4 * (y * heat.width + x) + 3] = Math.round(215 * (1 - value));
  }));
  heat.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(heat, 0, 0, context.canvas.width, context.canvas.height);
}

function blank(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}
