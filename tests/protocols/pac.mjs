// Evaluates a PAC as browsers do: stdin is {"script", "own", "questions": [[url, host], ...]}, stdout the answers.
import vm from "node:vm";

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const asked = JSON.parse(Buffer.concat(chunks));
const number = (text) => text.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
const context = vm.createContext({
  myIpAddress: () => { if (asked.own === null) throw new Error("no address"); return asked.own; },
  isInNet: (host, net, mask) => (number(host) & number(mask)) === (number(net) & number(mask)),
});
vm.runInContext(asked.script, context);
const answers = asked.questions.map(([url, host]) => {
  context.url = url;
  context.host = host;
  return vm.runInContext("FindProxyForURL(url, host)", context);
});
process.stdout.write(JSON.stringify(answers));
