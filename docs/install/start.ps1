# Windows: makes the environment at the first start, chooses torch for the card that is found, opens the page.
# Usage: powershell -ExecutionPolicy Bypass -File docs\install\start.ps1 [options of `sdlora webui`]
$ErrorActionPreference = "Stop"
Set-Location (Join-Path $PSScriptRoot "..\..")

if (-not (Test-Path ".venv\Scripts\sdlora.exe")) {
    if (Get-Command uv -ErrorAction SilentlyContinue) { uv venv -q --seed --python 3.11 .venv }
    else { py -3 -m venv .venv }
    if ($LASTEXITCODE) { throw "sdlora needs Python 3.10 or newer: https://www.python.org/downloads/" }
    if (Get-Command nvidia-smi -ErrorAction SilentlyContinue) {
        $env:PIP_EXTRA_INDEX_URL = "https://download.pytorch.org/whl/cu128"
    }
    & .venv\Scripts\python.exe -m pip install -c constraints.txt -e ".[webui,8bit,prodigy]"
    if ($LASTEXITCODE) { throw "the installation failed; the lines above say why" }
    & .venv\Scripts\sdlora.exe doctor --no-network
}
& .venv\Scripts\sdlora.exe webui @args
exit $LASTEXITCODE
