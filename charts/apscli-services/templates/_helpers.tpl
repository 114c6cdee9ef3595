{{- define "apscli-services.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
app.kubernetes.io/name: {{ .Chart.Name | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: apscli
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end -}}

{{/* The ConfigMap of a folder of scripts: list of the release's name and the folder's. */}}
{{- define "apscli-services.scripts" -}}
{{ index . 0 }}-scripts.{{ index . 1 }}
{{- end -}}
