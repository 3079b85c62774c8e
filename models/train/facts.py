"""What the small model knows about the program, and the ways in which people ask.

Each fact: topic, answer, `do` (things one wants to do, infinitive), `what` (things one asks about), `ask` (whole
questions), `unseen` (questions for measuring only; none of them can come out of the grammar that trains).
"""

from __future__ import annotations

import random
import re

from paraphrases import MORE, vary


class Fact:
    def __init__(self, topic, answer, do="", what="", ask="", unseen=""):
        self.topic, self.answer = topic, answer
        self.do, self.what, self.ask, self.unseen = (
            [s.strip() for s in text.split(";") if s.strip()] for text in (do, what, ask, unseen)
        )
        self.more = [s.strip() for s in MORE[topic].split(";") if s.strip()]


FACTS = [
    Fact("a single prompt", 'Run ds4 -p "your question" to get one answer and return to the shell.',
         "ask {one|a single} question from the {shell|command line|terminal}; run a one-shot prompt; give {the|a} prompt on the command line; get {one|just one|a single} answer; pass a prompt; use ds4 without the chat; run one prompt and exit",
         "the -p {flag|option|switch|}; one-shot mode; the one-shot command; -p",
         "how do i run a prompt; how does one-shot mode work; can i use ds4 for a single question",
         "I only want a single reply in my terminal, how do I start ds4?; what is -p good for"),
    Fact("starting the chat", "Run ds4 without -p to start the interactive chat.",
         "start {the|an|} {interactive|} chat; {open|enter} {the|an} interactive {chat|mode|session}; chat with the model; talk to the model; have a conversation",
         "the interactive {mode|chat}; interactive use; the chat",
         "how do i chat; is there a chat; is there an interactive mode; can i talk to you for longer; how do i begin a conversation",
         "how can a conversation be started; what must I enter for an interactive session"),
    Fact("a prompt from a file", "Use ds4 --prompt-file FILE to read the prompt from a file.",
         "read {the|a} prompt from a file; {load|take} {the|a|my} prompt from a {text |}file; use a {text |}file as {the|a|my} prompt; pass a {long|big} prompt in a file",
         "--prompt-file; the --prompt-file {flag|option}; the prompt file option",
         "where can i put a long prompt; my prompt is in a file, what now; my prompt is too long for the command line",
         "my question sits in prompt.txt, which option takes it?; how is a prompt file given"),
    Fact("a prompt from stdin", "Pipe the text into ds4; it reads the prompt from standard input.",
         "pipe {text|a prompt|a file} into ds4; read {the|a} prompt from {stdin|standard input}; use ds4 in a pipe; send {text|output} from another {program|command} to ds4",
         "stdin; standard input; piping; reading from stdin",
         "does ds4 read stdin; can ds4 read from a pipe; does it work with pipes",
         "cat notes.txt | ds4 - does this work?; does the program accept piped text"),
    Fact("choosing the model file", "Use -m FILE to choose the model file.",
         "{choose|select|pick|set|change|load|use|open} {the|a|another|a different|my own} model{ file|}; {point|tell} ds4 {to|about} a model file; use another {gguf|GGUF}{ file|}; load {a|the} {gguf|GGUF|weights} file",
         "-m; the -m {flag|option|switch}; the model {flag|option}",
         "how do i give the model file; where do i say which model to use; which flag names the model",
         "I have a GGUF on disk, how does ds4 get to know it?; what does -m FILE mean"),
    Fact("the number of tokens", "Use -n N to set how many tokens are generated at most.",
         "limit the {number of tokens|length of the answer|answer length|output}; set the {maximum|max} {number of |}tokens; {get|make|have} {shorter|longer} answers; generate {more|fewer|at most 100|only 50} tokens; stop after {100|a number of} tokens; change the {length|size} of the {answer|output|reply}",
         "-n; the -n {flag|option}; the token limit; the maximum number of generated tokens",
         "how many tokens are generated; how do i limit the output; the answer is too long, what can i do; how long can an answer be",
         "replies are cut off too early, what sets that limit?; what does -n 200 do"),
    Fact("the context size", "Use --ctx N to set the context size in tokens.",
         "{set|change|increase|raise|reduce|choose|enlarge} the context{ size| length| window|}; {get|use|have} a {bigger|larger|longer|smaller} context{ window| size|}; make the context {bigger|larger|smaller|longer}",
         "--ctx; the --ctx {flag|option|switch}; the context {flag|option|size|length|window}; the context size {flag|option}; ctx",
         "which flag sets the context; how do i get more context; how much context can i use and how do i set it",
         "the window is too small for my document, which flag helps?; what is --ctx 32768 for"),
    Fact("the temperature", "Use --temp T to set the sampling temperature; 0 always takes the most likely token.",
         "{set|change|lower|raise|choose} the {sampling |}temperature; make {the |}answers {more random|less random|deterministic|more creative}; get {greedy|deterministic|the same} {output|answers|decoding}; turn off {sampling|randomness}",
         "--temp; the --temp {flag|option}; temperature; the temperature {flag|option}; greedy decoding",
         "how do i get the same answer every time; why do answers differ from run to run; which flag is for the temperature",
         "I want less randomness, what can I do?; what happens with --temp 0"),
    Fact("top-k", "Use --top-k K to sample from the K most likely tokens only.",
         "{set|change|use} top-k{ sampling|}; sample only from the {best|most likely} {k |}tokens; limit sampling to {k|the top} tokens",
         "--top-k; top-k; top k; top-k sampling; the --top-k {flag|option}",
         "does ds4 have top-k; how do i use top k", "is topk supported?; what does --top-k 40 change"),
    Fact("top-p", "Use --top-p P to sample from the smallest set of tokens whose probabilities add up to P.",
         "{set|change|use} top-p{ sampling|}; use nucleus sampling; turn on nucleus sampling",
         "--top-p; top-p; top p; nucleus sampling; the --top-p {flag|option}",
         "does ds4 have top-p; does ds4 do nucleus sampling", "is topp supported?; what does --top-p 0.9 change"),
    Fact("min-p", "Use --min-p P to drop tokens that are less likely than P times the best one.",
         "{set|change|use} min-p{ sampling|}; drop unlikely tokens; cut off {rare|unlikely} tokens",
         "--min-p; min-p; min p; min-p sampling; the --min-p {flag|option}",
         "does ds4 have min-p; how do i use min p", "is minp supported?; what does --min-p 0.05 change"),
    Fact("the seed", "Use --seed N to make sampling repeatable.",
         "{set|fix|choose|change} the {random |}seed; make {sampling|a run|the output} {repeatable|reproducible}; repeat a run exactly; reproduce {a run|an answer|a result}",
         "--seed; the --seed {flag|option}; the random seed; the seed",
         "how do i get reproducible sampling; which flag sets the seed", "I need reproducible samples, how?; what is --seed 7 for"),
    Fact("answers without thinking", "Use --nothink, or /nothink in the chat, to get answers without visible reasoning.",
         "{turn off|disable|switch off|stop|skip|avoid} {thinking|the thinking|reasoning|the reasoning|thinking mode}; get {direct answers|answers without thinking|answers without reasoning}; make the model answer {directly|without thinking|at once}; hide the reasoning",
         "--nothink; /nothink; the --nothink {flag|option}; the /nothink command; non-thinking mode",
         "how do i stop you from thinking; why do you think so long and how do i stop it; i do not want to see the reasoning",
         "can the reasoning be left out?; please, no more thoughts before the reply, which flag is that"),
    Fact("thinking mode", "Use --think, or /think in the chat, to let the model reason before it answers.",
         "{turn on|enable|switch on|start|activate} {thinking|the thinking|reasoning|the reasoning|thinking mode}; make the model {think|reason}{ first|}; see the {reasoning|thoughts}; let the model think{ first| before it answers|}; show the reasoning",
         "--think; /think; the --think {flag|option}; the /think command; thinking mode; visible reasoning",
         "how do i get you to think; can you show your reasoning; can the model think before it answers",
         "I would love to see its thoughts, what is the switch?; how does --think change a reply"),
    Fact("maximum thinking", "Use --think-max, or /think-max in the chat, for the greatest reasoning effort.",
         "{get|use|have|set|turn on} {the most|maximum|the greatest|the highest|more} {reasoning|thinking}{ effort|}; make the model think {as hard as possible|harder|longer|more}; raise the {reasoning|thinking} effort",
         "--think-max; /think-max; the --think-max {flag|option}; the /think-max command; maximum thinking; the reasoning effort",
         "how do i make you think harder; what is the strongest thinking mode", "which setting gives the deepest reasoning?; with /think-max, what changes"),
    Fact("the system text", "Use -sys TEXT to set the system text.",
         "{set|give|change|pass|use|add} {a|the|my own} system {text|prompt|message}; give {general |}instructions to the model; tell the model how to behave",
         "-sys; the -sys {flag|option}; the system {prompt|text|message}; system prompts",
         "is there a system prompt; where do i put instructions for the model; which flag sets the system prompt",
         "I want it to always reply as a pirate, which flag takes such instructions?; what goes into -sys"),
    Fact("the list of chat commands", "The chat commands are /help, /think, /think-max, /nothink, /ctx N, /read FILE, /status, /save, /load, /clear and /quit.",
         "list {the|all} {chat |}commands; see {the|all|which} {chat |}commands{ there are|}; find {the|out the} {chat |}commands",
         "the {chat |slash |}commands; all {chat |}commands; the commands {in|of} the chat; slash commands",
         "what commands are there; which commands {can i use|are there|exist|do you have|do you know}{ in the chat|}; what can i type in the chat; what commands does the chat {have|know|understand}",
         "name every slash command please; in chat mode, what may I enter after the slash"),
    Fact("/help", "/help lists the chat commands.",
         "{get|show|see} {the |}help in the chat; show the help; get help",
         "/help; the /help command; the help command; help",
         "is there a help command; where do i find help; help; i need help; help me please",
         "what comes up when I type /help?; some help please"),
    Fact("/ctx in the chat", "/ctx N sets the context size to N tokens in the chat.",
         "{change|set} the context {size |}{in|during|inside} the chat; change the context size {while chatting|without restarting}",
         "/ctx; the /ctx command; /ctx N; the command for the context size in the chat",
         "can i change the context in the chat; which chat command sets the context", "how would I resize the context while I am chatting?; explain /ctx 4096"),
    Fact("/read", "/read FILE reads a file into the conversation.",
         "{read|load|include|add|put} a {text |}file {in|into} the {chat|conversation}; {show|give} {the model|you} a file; add a document to the {chat|conversation}; let {the model|you} read a file",
         "/read; the /read command; /read FILE; the read command",
         "can you read a file; can i give you a file in the chat; which command reads a file",
         "I have a text that you should look at in our chat, what do I type?; purpose of /read"),
    Fact("/status", "/status shows the model, the context in use and the settings.",
         "{see|show|check|print} the {status|settings|current settings|state}; see how much context is {used|left|in use}; check how full the context is",
         "/status; the /status command; the status command; the status",
         "how full is the context; which settings are on; how much context have i used", "where do I see what settings are active?; tell me the use of /status"),
    Fact("saving a conversation", "/save stores the conversation, so that /load can bring it back.",
         "{save|store|keep} {a|the|this|my|our} {conversation|chat|session}; write the {conversation|chat} to disk",
         "/save; the /save command; the save command; saving",
         "can i save the chat; will you remember this tomorrow; how do i keep this conversation",
         "I want to keep our talk for tomorrow, what do I enter?; tell me the use of /save"),
    Fact("loading a conversation", "/load brings back a conversation that was stored with /save.",
         "{load|restore|resume|bring back|reopen|open} {a|the|an old|my|a saved|the last} {conversation|chat|session}; continue {an old|a saved|a stored} {conversation|chat}; go back to {an old|a saved} {chat|conversation}",
         "/load; the /load command; the load command; restoring a conversation",
         "can i load a saved chat; how do i get an old chat back; how do i continue where i stopped",
         "yesterday I saved our talk, how do I get it again?; tell me the use of /load"),
    Fact("/clear", "/clear forgets the conversation and starts a new one.",
         "{clear|forget|delete|reset|erase|drop} {the|this|our} {conversation|chat|history}; start {a new conversation|a new chat|over|again|afresh}; empty the {chat|context|conversation}; begin a new {chat|conversation}",
         "/clear; the /clear command; the clear command",
         "how do i start over; can i reset the chat; forget everything; how do i make you forget",
         "all of this should be wiped, what do I enter?; tell me the use of /clear"),
    Fact("/quit", "/quit leaves the chat.",
         "{leave|quit|exit|end|close|stop} {the chat|ds4|the program|the session|this program}; get out{ of the chat| of here|}; close the chat",
         "/quit; the /quit command; the quit command",
         "how do i leave; how do i get out; how do i quit; quit; exit",
         "I am done, how do I get back to my shell?; tell me the use of /quit"),
    Fact("stopping an answer", "Ctrl+C stops the answer and keeps the conversation.",
         "{stop|interrupt|cancel|abort|break off} {the answer|an answer|the generation|the output|generating|generation|a running answer|the model}; make {you|the model} stop{ talking| writing|}",
         "{Ctrl+C|ctrl-c|ctrl c|control c}; interrupting an answer; stopping the generation",
         "how do i stop you; what happens when i press {ctrl+c|ctrl-c|control-c}; does ctrl+c {end|quit|close} the chat; is the conversation lost when i press ctrl+c",
         "the reply goes on and on, which keys end it?; do I lose everything with ctrl+c"),
    Fact("ds4 inspect", "ds4 inspect FILE shows the metadata, the tensor table, the bytes per component and what fits on this machine.",
         "{inspect|look into|examine|look at|see what is in} a {model|gguf|GGUF}{ file|}; see the {metadata|tensors|tensor table}{ of a file|}; find out {what fits here|whether a model fits|whether a model fits in memory}; list the tensors; check whether {a|the|my} model fits",
         "ds4 inspect; the inspect command; inspect; the tensor table",
         "which command shows the tensors; will the model fit on my machine; what is inside a model file; does the model fit in my memory",
         "which tensors does my GGUF hold, and how do I see that?; purpose of ds4 inspect"),
    Fact("ds4 bench", "ds4 bench measures prefill and decode separately at several context lengths and writes CSV.",
         "{measure|test|benchmark|find out} {the |}{speed|performance}; run a benchmark; benchmark {ds4|the model|my machine}; see how fast {it is|ds4 is|my machine is}; measure tokens per second",
         "ds4 bench; the bench command; the benchmark{ command|}; bench; benchmarking",
         "how fast is it; how do i measure speed; is there a benchmark; how many tokens per second do i get",
         "my laptop seems slow, which command gives figures?; purpose of ds4 bench"),
    Fact("ds4 logits", "ds4 logits prints the logits that the model gives for a prompt.",
         "{see|print|get|show|dump} {the |}{raw |}logits; {see|get} the raw {scores|outputs} of the model",
         "ds4 logits; the logits command; logits",
         "which command prints logits; can i see the logits", "I need raw model scores for a text, which command?; purpose of ds4 logits"),
    Fact("ds4 text", "ds4 text has the commands tokenize, detokenize, render and parse.",
         "{tokenize|detokenize} {a text|text|a file|a string}; {count|see} {the |}tokens {of|in} a text; render a {prompt|conversation}; parse a reply; turn {text into tokens|tokens into text}",
         "ds4 text; the text command; ds4 text tokenize; ds4 text render; ds4 text parse; ds4 text detokenize; tokenizing",
         "which command tokenizes; how does my text look as tokens; what can ds4 text do", "how many tokens does my sentence have, which command?; purpose of ds4 text"),
    Fact("--dump-tokens", "--dump-tokens prints the tokens of the prompt.",
         "{print|see|show|dump} the {prompt tokens|tokens of the prompt|tokens of my prompt}; debug the tokens of {a|the} prompt",
         "--dump-tokens; the --dump-tokens {flag|option}", "which flag prints the prompt tokens",
         "what comes out with --dump-tokens?; token ids of my prompt, which flag"),
    Fact("--dump-logprobs", "--dump-logprobs FILE writes the log probabilities to a file; --logprobs-top-k K says how many per token.",
         "{write|save|dump|get|see} {the |}{log probabilities|logprobs|token probabilities}; store the logprobs in a file",
         "--dump-logprobs; --logprobs-top-k; the --dump-logprobs {flag|option}; logprobs; log probabilities",
         "can i get logprobs; which flag writes log probabilities", "token likelihoods in a file, how?; what comes out with --dump-logprobs"),
    Fact("the server", "Run ds4-server --ctx 100000 --kv-disk-dir DIR --kv-disk-space-mb 8192 to start the HTTP server.",
         "{start|run|launch|open} {the|a|an} {http |HTTP |web |}server; {serve|offer} the model {over http|over the network|to other programs}; use ds4 as a server; run ds4-server",
         "ds4-server; the server; the HTTP server; the server command; the web server",
         "is there a server; how do i run the server; which command starts the server; does ds4 have an api; is there an http api",
         "other programs should reach the model over HTTP, what do I launch?; give me the ds4-server command line"),
    Fact("the protocols", "ds4-server speaks the OpenAI and the Anthropic protocols over HTTP.",
         "use the {openai|OpenAI|anthropic|Anthropic} {api|API|protocol}; call ds4 with {the openai client|an openai library|the anthropic client}",
         "the {openai|OpenAI|anthropic|Anthropic} {api|API|protocol}; the server protocols; the protocols of the server; the api",
         "which protocols does the server {speak|know|support}; is it compatible with {openai|OpenAI|anthropic|Anthropic}; does the server support the {openai|OpenAI|anthropic|Anthropic} api; which api does it have",
         "will my OpenAI client library work with it?; what wire formats are spoken by ds4-server"),
    Fact("coding agents", "Coding agents such as Claude Code, Codex, opencode and Pi work with ds4-server.",
         "use {a coding agent|coding agents|claude code|Claude Code|codex|Codex|opencode|Pi|an agent}{ with ds4|}; connect {claude code|Claude Code|codex|opencode|an agent|my agent}; code with {an agent|ds4}",
         "coding agents; agents; claude code; Claude Code; codex; opencode; Pi; supported agents",
         "which {coding |}agents {work|can i use|are supported}; does {claude code|Claude Code|codex|Codex|opencode|Pi} work{ with ds4| with it|}; can i use ds4 for coding",
         "is my programming assistant able to use this?; name the agents that are known to run with it"),
    Fact("the disk cache", "Use --kv-disk-dir DIR to keep the KV cache on disk, and --kv-disk-space-mb N to limit its size.",
         "{keep|store|put|save} the {kv |KV |}cache on disk; {use|turn on|enable} the disk cache; limit the {disk space|size of the disk cache|size of the cache}; set the cache {folder|directory}",
         "--kv-disk-dir; --kv-disk-space-mb; the disk cache; the {kv|KV} {disk |}cache; the cache {folder|directory}; --kv-disk-space-mb 8192",
         "where is the kv cache stored; how big can the disk cache get; does the server cache prompts on disk; does ds4 keep the cache on disk",
         "a restart should not compute long prompts again, which flags help?; how do I bound the space of cached prompts"),
    Fact("the full model file", "The full model is DeepSeek-V4-Flash-IQ2XXS-w2Q2K-AProjQ8-SExpQ8-OutQ8-chat-v2-imatrix.gguf from the repository antirez/deepseek-v4-gguf; it has 86.7 GB.",
         "{get|download|find|fetch|obtain|have} the {full|real|big|large|whole} model{ file|}; download the {weights|model|gguf|GGUF}; use the {full|real|big|large} model",
         "the {full|real|big|large} model; the full model file; the model repository; the name of the {model |}file; antirez/deepseek-v4-gguf",
         "where do i get the {full |real |big |}model; which file do i {need|download}; where are the weights; from where can i download the model; how big is the {file|full model|download|model file}; how large is the full model",
         "I am ready for the real thing, where is it?; what is the size of the big GGUF in gigabytes"),
    Fact("DeepSeek V4 Flash", "DeepSeek V4 Flash has 284 billion parameters, of which 13 billion are active for a token, and a context of 1 million tokens.",
         "", "DeepSeek V4 Flash; deepseek v4 flash; deepseek; DeepSeek; DeepSeek V4; the number of parameters; the active parameters; the parameters of the full model; the maximum context of the full model",
         "how many parameters does {the full model|deepseek v4 flash|the model|it|DeepSeek V4 Flash} have; how {big|large} is deepseek v4{ flash|}; how many parameters are active; how long is the context of {the full model|deepseek v4 flash}; what context does the full model have",
         "284 billion or 13 billion, which one is it?; what is the parameter count of V4 Flash"),
    Fact("the hardware", "The program runs on the CPU now; CUDA and wgpu backends follow.",
         "{run|use} {it|ds4|the model} on {a|my|the} {gpu|GPU|graphics card|CPU|cpu|mac|Mac}; use {the|my|a} {gpu|GPU|graphics card}; use {cuda|CUDA|wgpu|metal|Metal|vulkan}",
         "CUDA; cuda; wgpu; GPU support; the backends; the supported hardware; the CPU backend; gpu",
         "does it {run|work} on {a gpu|my gpu|nvidia|a graphics card|a cpu|the cpu|a mac|amd}; do i need a {gpu|GPU|graphics card}; which {hardware|backends|devices} {is|are} supported; is there gpu support; does it support {cuda|CUDA|wgpu|metal}",
         "my computer has no graphics card, is that a problem?; on what kind of processor does this work today"),
    Fact("the programming language", "ds4 is written in Rust.",
         "", "the {programming |}language of {ds4|this program|the program}; rust; Rust; the source code language",
         "what {language|programming language} is {ds4|this|it|this program|the program} {written in|made in|programmed in}; is {ds4|it|this} written in {rust|c|python|go|c++|Rust|java}; which language is ds4 written in; in which language is it written; what is it written in",
         "did they write this thing in C++?; tell me the implementation language"),
    Fact("the licence", "ds4 is licensed under MIT or Apache-2.0, as you choose.",
         "{use|copy|change|sell} {ds4|it|this program} {commercially|in my company|in my own work|in my product}",
         "the {license|licence}; the {license|licence} of {ds4|this program}; the copyright",
         "which {license|licence} {does it have|is it under|applies}; what {license|licence} is {this|it|ds4} under; is it {free|open source|free software}; is ds4 {free|open source}; may i use it {commercially|at work}",
         "under what terms may I copy the source?; is this MIT"),
    Fact("this small model", "I am the small built-in model of ds4, made for trying and testing the program.",
         "", "this model; the small model; the built-in model; the small built-in model; your name",
         "who are you; what are you; what is your name; are you {deepseek|chatgpt|gpt|claude|a human|a robot|an ai|a person|DeepSeek}; which model {are you|is this|am i talking to|is running}; what model is this; what is this model; who am i talking to; who made you; tell me about yourself; introduce yourself; what kind of model are you",
         "am I speaking with the real DeepSeek?; could you say who it is that answers here"),
    Fact("what this model can do", "I can answer questions about ds4, add two-digit numbers, find a code word in a text and call tools that you declare.",
         "", "your abilities; your skills; your capabilities",
         "what can you do; what are you {able to do|good at|good for|made for}; what do you know; what can i ask{ you|}; what should i ask you; how can you help{ me|}; what can you help{ me|} with; what are your {skills|abilities}; can you help me; what can i do {here|with you|with this model}",
         "give me an idea of what I could try with you; which tasks do you master"),
    Fact("ds4", "ds4 is a program, written in Rust, that runs DeepSeek V4 Flash on your own machine.",
         "", "ds4; DS4; this program; this software; the program; this tool; the purpose of ds4; the purpose of this program",
         "what does {ds4|this program|the program} do; what is this{ program|}{ for|}; why would i use ds4; what is ds4 good for; what program is this; what is this thing",
         "in one sentence, what is this software about?; I just installed ds4 and wonder what it does"),
    Fact("the binaries", "There are two programs: ds4 for the command line and ds4-server for HTTP clients.",
         "", "the {two |}{programs|binaries|executables}; the difference between ds4 and ds4-server",
         "which {programs|binaries|executables} are there; what is the difference between ds4 and ds4-server; how many programs are there; which binaries are installed; do i need ds4 or ds4-server",
         "what executables does the project build?; ds4 versus ds4-server, please"),
    Fact("the built-in model as default", "Without -m and without another model, ds4 uses the small built-in model.",
         "{use|run|try} {ds4|it} without {a model|a model file|downloading a model|the big model}; try ds4 {at once|without a download}; use the {built-in|small} model",
         "the default model",
         "which model is {used|loaded} {by default|without -m}; do i need to download {a model|anything}{ first|}; what happens without -m; can i try {it|ds4} without {a download|downloading anything}",
         "nothing has been downloaded yet, does ds4 still answer?; with no -m given, what is loaded"),
    Fact("why answers are simple", "I am a small built-in model; use -m FILE with the full model for better answers.",
         "{get|have} better answers; {get|have|use} a {smarter|better|stronger} model; improve the answers",
         "the quality of {your|the} answers",
         "why are {you|your answers} so {bad|simple|dumb|limited|stupid|short}; why do you know so little; why can't you answer; are you {smart|clever}; how do i get better answers; you are {stupid|dumb|not very smart}; that is wrong; your answer is wrong",
         "your replies are poor, how can that change?; you seem rather limited, why"),
    Fact("tools", "Declare tools in the request to ds4-server, and I call them when they fit your message.",
         "{declare|use|give you|add|define} {tools|a tool|functions|a function}; let {you|the model} call {tools|functions|a tool}; use {tool calling|function calling|tool calls}",
         "tool calling; function calling; tool calls; tools",
         "can you {call|use} {tools|functions|a tool}; do you support {tools|functions|tool calls|function calling}; does the server support tools; how do tools work",
         "are functions of mine something you could invoke?; how does tool use work here"),
    Fact("privacy", "Everything runs on your own machine; ds4 sends nothing to anybody.",
         "{use|run} {it|ds4|the model} {offline|without internet|without a network}; keep my data {private|on my machine}",
         "privacy; my data; data protection; offline use",
         "is my data {sent|safe|private|stored}{ anywhere|}; do you need {the internet|a network|an internet connection}; does it work {offline|without internet}; do you send {my data|anything} {anywhere|to a server|to the cloud}; is this running in the cloud; is it private",
         "my texts are confidential, do they leave this computer?; can I unplug the network cable"),
]

DO_FRAMES = """how do i {do}; how can i {do}; how to {do}; how would one {do}; how could i {do}; what do i type to {do}; what must i do to {do};
what do i have to do to {do}; {which|what} {option|flag|command|switch|setting} do i need to {do}; {which|what} {option|flag|command} {lets|helps} me {do};
is there {a way|an option|a flag|any way|a command} to {do}; can i {do}; is it possible to {do}; i want to {do}; i would like to {do}; i'd like to {do};
tell me how to {do}; {please |}explain how to {do}; {please |}show me how to {do}; help me {do}; i need to {do}; how does one {do} {with|in} ds4; how do you {do};
what's the {best |easiest |}way to {do}; what is the {best |easiest |right |}way to {do}; could you tell me how to {do}; do you know how to {do}; i'm trying to {do};
how should i {do}; {do}; {do}, how; how do i {do} with ds4; {which|what} do i use to {do}; can ds4 help me {do}; my goal is to {do}; how am i supposed to {do}"""

WHAT_FRAMES = """what is {what}; what's {what}; what does {what} do; tell me about {what}; {please |}explain {what}; {what}; what about {what}; describe {what};
can you explain {what}; could you explain {what} to me; i have a question about {what}; what does {what} mean; what is {what} for; what is {what} {good|used} for; info {on|about} {what};
information about {what}; do you know {what}; i want to know about {what}; what do you know about {what}; how does {what} work; how do i use {what}; when do i need {what};
when should i use {what}; what can you tell me about {what}; give me {information|details} about {what}; i do not understand {what}; say something about {what}; what happens with {what};
i read about {what}, what is it; why would i use {what}; i'd like to understand {what}; {what} - what is that; meaning of {what}"""

BEFORE = ["", "", "", "", "", "", "please: ", "hey, ", "hi, ", "hello, ", "ok, ", "quick question: ", "sorry, ", "um, ", "so ", "and ", "now ", "one more question: ", "excuse me, ", "well, ", "good. ", "thanks. "]
AFTER = ["", "", "", "", "", "", "", " please", ", please", " thanks", " thank you", " in ds4", " here", " now", ", do you know", " exactly", " in this program", " with ds4"]


def expand(rng: random.Random, text: str) -> str:
    """Chooses one of the alternatives in every {a|b}; names in braces without a bar stay."""
    while True:
        m = re.search(r"\{([^{}]*\|[^{}]*)\}", text)
        if not m:
            return text
        text = text[: m.start()] + rng.choice(m.group(1).split("|")) + text[m.end() :]


_DO = [s.strip() for s in DO_FRAMES.replace("\n", " ").split(";") if s.strip()]
_WHAT = [s.strip() for s in WHAT_FRAMES.replace("\n", " ").split(";") if s.strip()]


def typo(rng: random.Random, s: str) -> str:
    """One or two slips of the fingers in words of four letters or more."""
    words = s.split(" ")
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(len(words))
        w = words[i]
        if len(w) < 4 or not w.isalpha():
            continue
        j = rng.randrange(1, len(w) - 1)
        words[i] = rng.choice((w[:j] + w[j + 1] + w[j] + w[j + 2 :], w[:j] + w[j + 1 :], w[:j] + w[j] + w[j:], w[:j] + rng.choice("abcdefghijklmnopqrstuvwxyz") + w[j + 1 :]))
    return " ".join(words)


def dress(rng: random.Random, s: str, question: bool = True) -> str:
    """Case, punctuation, politeness and slips."""
    s = rng.choice(BEFORE) + s + (rng.choice(AFTER) if question else "")
    r = rng.random()
    if r < 0.55:
        s = s[0].upper() + s[1:]
    elif r < 0.58:
        s = s.upper()
    if rng.random() < 0.5:
        s = re.sub(r"\bi\b", "I", s)
    if rng.random() < 0.12:
        s = typo(rng, s)
    return s + rng.choice(["?", "?", "?", "", "", ".", "??", " ?", "!"])


def plain(s: str) -> str:
    return re.sub(r"[^a-z0-9/+-]+", " ", s.lower()).strip()


UNSEEN = {plain(q) for f in FACTS for q in f.unseen}


def question(rng: random.Random, fact: Fact | None = None) -> tuple[str, Fact]:
    """A question that is none of the unseen ones, and its fact."""
    while True:
        text, of = any_question(rng, fact or rng.choice(FACTS))
        if plain(text) not in UNSEEN:
            return text, of


def any_question(rng: random.Random, fact: Fact) -> tuple[str, Fact]:
    kinds = [(fact.do, _DO, "{do}")] * 3 * bool(fact.do) + [(fact.what, _WHAT, "{what}")] * 2 * bool(fact.what) + [(fact.ask, None, "")] * 3 * bool(fact.ask) + [(fact.more, None, "")] * 5
    phrases, frames, slot = rng.choice(kinds)
    phrase = expand(rng, rng.choice(phrases)).strip()
    if frames:
        phrase = expand(rng, rng.choice(frames)).replace(slot, phrase)
    return dress(rng, vary(rng, phrase)), fact
