// Types shared by the studio's scripts (src/hiresfix/server/web/static/js). Only the type checker reads this file.

// The page

type Child = Node | string | number | false | null | undefined | Child[];

interface ElementProperties {
  [name: string]: unknown;
  onclick?: (event: MouseEvent) => unknown;
  onchange?: (event: Event) => unknown;
  oninput?: (event: Event) => unknown;
}

type TagName<T extends string> = T extends `${infer Name}.${string}` ? Name : T;
type ElementOf<T extends string> =
  TagName<T> extends keyof HTMLElementTagNameMap ? HTMLElementTagNameMap[TagName<T>] : HTMLElement;

/** Elements of templates/studio.html by ID, where the type is not just HTMLElement. */
interface PageElements {
  account: HTMLDialogElement;
  capture: HTMLInputElement;
  details: HTMLDialogElement;
  expert: HTMLDetailsElement;
  files: HTMLInputElement;
  help: HTMLDialogElement;
  key: HTMLInputElement;
  remember: HTMLInputElement;
  settings: HTMLFormElement;
  signin: HTMLDialogElement;
  "single-keys": HTMLInputElement;
  url: HTMLInputElement;
  "url-form": HTMLFormElement;
  "variant-count": HTMLSelectElement;
  "variant-param": HTMLSelectElement;
}

/** The JSON in `#page-data`. */
interface PageData {
  errors: Record<string, string>;
  messages: Record<string, string>;
  snippets: Record<string, string>;
  requestPlaceholder: string;
  sampleUrl: string;
  paramNames: Record<string, string>;
  choiceNames: Record<string, string>;
  sliderEnds: Record<string, [string, string]>;
  ledgerKinds: Record<string, string>;
  webhookEvents: Record<string, string>;
  deliveryStatuses: Record<string, string>;
  jobStates: Record<string, string>;
}

// Answers of the API

interface RequestOptions {
  json?: unknown;
  body?: BodyInit;
  headers?: Record<string, string>;
  signal?: AbortSignal;
  /** Wait and try again after a 429. */
  retry?: boolean;
  /** Key to use instead of the current one. */
  as?: string | null;
}

interface JobBase {
  id: string;
  model: string;
  progress: number;
  queuePosition: number | null;
  etaSeconds: number | null;
  creditCost: number;
  createdAt: string;
  completedAt: string | null;
  expired: boolean;
  expiresAt: string | null;
  seed: number | null;
  error: string | null;
  errorReason: string | null;
  errorParams: Record<string, string | number> | null;
  metadata: { warnings?: string[] } | null;
}

interface CompletedJob extends JobBase {
  status: "COMPLETED";
  width: number;
  height: number;
  result: { images: string[] };
}

interface OtherJob extends JobBase {
  status: "QUEUED" | "PROCESSING" | "FAILED" | "CANCELLED";
  width: null;
  height: null;
  result: null;
}

type Job = CompletedJob | OtherJob;

interface Estimate {
  creditCost: number;
  creditsAvailable: number;
  budgetAvailable: number | null;
  estimatedSeconds: number | null;
  input: { width: number; height: number };
  output: { width: number; height: number };
}

interface Me {
  team: { name: string; credits: number };
  user: { email: string; role: string };
  apiKey: { id: string; name: string } | null;
}

interface ApiKey {
  id: string;
  name: string;
  prefix: string;
  active: boolean;
  monthlyBudget: number | null;
  expiresAt: string | null;
  lastUsedAt: string | null;
  revokedAt: string | null;
}

interface LedgerEntry {
  createdAt: string;
  kind: string;
  amount: number;
  jobId: string | null;
  reason: string | null;
}

interface Delivery {
  id: string;
  createdAt: string;
  event: string;
  url: string;
  status: string;
  lastStatus: number | null;
  attemptCount: number;
  jobId: string;
}

type ParamValue = string | number;
type Params = Record<string, ParamValue>;

interface ParamSchema {
  type: string;
  description: string;
  default?: ParamValue;
  minimum?: number;
  maximum?: number;
  maxLength?: number;
  enum?: ParamValue[];
}

interface Preset {
  id: string;
  label: string;
  description: string;
  params: Params;
}

interface Model {
  id: string;
  label: string;
  description: string;
  paramsKey: string;
  pricingMode: string;
  presets: Preset[];
  params: { properties: Record<string, ParamSchema> };
}

// The studio

/** An image to upscale. Everything but `error`, `busy` and `uploading` is stored. */
interface SourceImage {
  id: string;
  at: number;
  name: string;
  blob: Blob | null;
  url: string | null;
  /** URL of the upload, and when it expires. */
  upload: string | null;
  expires: number;
  width: number;
  height: number;
  visible?: boolean;
  error: import("../../src/hiresfix/server/web/static/js/api.js").ApiError | null;
  busy: boolean;
  uploading?: Promise<string> | null;
}

/** A job as this browser knows it. Everything but `error` and `loading` is stored. */
interface Run {
  id: string;
  at: number;
  model: string;
  /** The server's answer; null until there is one. */
  job: Job | null;
  imageId: string | null;
  name: string;
  params: Params | null;
  preset?: string | null;
  /** Runs submitted together have the same group. */
  group?: string;
  price: number | null;
  thumb: Blob | null;
  /** From the job list, which has no parameters. */
  listed?: boolean;
  error?: Error;
  loading?: Promise<Blob> | null;
}

type FinishedRun = Run & { job: CompletedJob };

interface RunActions {
  show(run: Run): unknown;
  reuse(run: Run): unknown;
  compare(run: Run): unknown;
  cancel(run: Run): unknown;
  deleteFiles(run: Run): unknown;
  showDetails(run: Run): unknown;
}

interface ControlsState {
  model?: string;
  preset?: string | null;
  values?: Params;
}

interface SavedSettings {
  selected?: string | null;
  open?: string[];
  controls?: ControlsState;
  language?: string;
  singleKeys?: boolean;
}

interface Store {
  me: Me | null;
  /** Null until the models are loaded. */
  controls: import("../../src/hiresfix/server/web/static/js/controls.js").Controls;
  /** ID of the selected image. */
  selected: string | null;
  /** ID of the run at the left; null for the selected image. */
  left: string | null;
  /** ID of the run at the right; null for the newest result or its group. */
  right: string | null;
  estimate: { key: string; answer?: Estimate; error?: SourceImage["error"]; totalCost?: number | null } | null;
  variantParam: string | null;
  codeLanguage: string;
  singleKeys: boolean;
}

/** An image in the viewer. */
interface Pane {
  label: string;
  url: string;
  width: number;
  height: number;
  onSelect?: (() => void) | null;
}
