// The lengths that an ONNX file of `dualcaps export` gives for one image, in Node; for export.py.
//
//     node onnx_in_node.mjs FOLDER MODEL.onnx PIXELS CHANNELS HEIGHT WIDTH
//
// FOLDER holds node_modules with onnxruntime-node; PIXELS is a file of bytes, channels first.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, model, pixels, ...shape] = process.argv.slice(2);
const ort = createRequire(`${folder}/package.json`)("onnxruntime-node");
const session = await ort.InferenceSession.create(model);
const images = new ort.Tensor("uint8", readFileSync(pixels), [1, ...shape.map(Number)]);
const { lengths } = await session.run({ images });
console.log(JSON.stringify(Array.from(lengths.data)));
