// The boxes that OHIF's parser finds in a structured report: node cornerstone.mjs NODE_MODULES SR
// The film lies in its own pixels: spacing 1, its first pixel's centre at the origin.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, path] = process.argv.slice(2);
const require = createRequire(`${modules}/here.js`);
const load = (name, file) => import(pathToFileURL(`${modules}/${name}/${file}`));
const dcmjs = require("dcmjs");
const core = await load("@cornerstonejs/core", "dist/esm/index.js");
const { adaptersSR } = await load("@cornerstonejs/adapters", "dist/esm/index.js");

const bytes = readFileSync(path);
const data = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
const { DicomMessage, DicomMetaDictionary } = dcmjs.data;
const report = DicomMetaDictionary.naturalizeDataset(DicomMessage.readFile(data).dict);
const series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0];
const film = series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID;
const plane = {
  frameOfReferenceUID: "none",
  imagePositionPatient: [0, 0, 0],
  rowCosines: [1, 0, 0],
  columnCosines: [0, 1, 0],
  rowPixelSpacing: 1,
  columnPixelSpacing: 1,
};
core.metaData.addProvider((type) => (type === "imagePlaneModule" ? plane : undefined), 10000);
const { MeasurementReport } = adaptersSR.Cornerstone3D;
const found = MeasurementReport.generateToolState(report, { [`${film}:1`]: "film" }, core.metaData);
const told = Object.entries(found).map(([tool, all]) => [
  tool,
  all.map((one) => one.annotation.data.handles.points),
]);
console.log(`FOUND ${JSON.stringify(Object.fromEntries(told))}`);
