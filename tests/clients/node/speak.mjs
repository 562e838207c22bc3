// The part of every Node client program that is the same; the protocol is that of python/speak.py.
//
// `with_*.mjs` call `run`. They run from the folder their packages were installed into, beside a copy of this file.

import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

export const LOOK_UP = {
  type: 'object',
  properties: { input: { type: 'string' } },
  required: ['input'],
};

export const TOOL = {
  type: 'function',
  function: { name: 'look_up', description: 'Looks a word up.', parameters: LOOK_UP },
};

export const ANSWER = {
  type: 'object',
  properties: { answer: { type: 'string' } },
  required: ['answer'],
  additionalProperties: false,
};

/// Does what the tool does.
export const lookUp = () => 'forty fathoms';

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

/// Passes a stream's texts on; leaves it after so many of them.
async function follow({ texts, leave }, leaveAfter) {
  const seen = [];
  for await (const text of texts) {
    seen.push(text);
    say({ chunk: text });
    if (seen.length === leaveAfter) {
      leave();
      return { left: true };
    }
  }
  return { answer: { text: seen.join(''), chunks: seen.length } };
}

async function carryOut(functions, { do: name, leave_after: leaveAfter, ...request }) {
  try {
    const outcome = await functions[name](request);
    return name === 'stream' ? await follow(outcome, leaveAfter) : { answer: outcome };
  } catch (error) {
    // What a user sees: Node puts the reason of a failed fetch below it.
    const text = [error.message, error.cause?.message, error.cause?.code].filter(Boolean).join(': ');
    const kind = error.name === 'Error' ? error.constructor.name : error.name;
    return { error: { kind, text } };
  }
}

/// Serves requests until stdin ends. A stream is `{texts, leave}`: its texts, and how to leave it.
export async function run(name, functions) {
  const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, 'utf8'));
  say({ ready: version });
  for await (const line of createInterface({ input: process.stdin })) {
    say(await carryOut(functions, JSON.parse(line)));
  }
  process.exit(0);
}
